#!/usr/bin/env bash
# A run that outlives its jobs: saves when the time is nearly over or the job is preempted, and goes on in the next one.
#   sbatch examples/cluster/slurm.sh
#   sbatch --export ALL,PRESET=imagenet32,RUN=/scratch/imagenet32,STEPS=200000 examples/cluster/slurm.sh
#SBATCH --job-name igebm
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 16
#SBATCH --time 8:00:00
#SBATCH --signal B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output igebm-%j.log
set -euo pipefail

PRESET=${PRESET:-cifar10-cond}
RUN=${RUN:-runs/$PRESET}        # on a file system that all nodes see
STEPS=${STEPS:-100000}          # in total, over all jobs
BATCH=${BATCH:-}                # of all GPUs together; empty: the preset's
GPUS=${SLURM_GPUS_ON_NODE:-1}
NODES=${SLURM_NNODES:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

if [ -e "$RUN/checkpoint.pt" ]; then
  what=(--resume "$RUN")
else
  rm -f "$RUN/preset.json"      # of a job that ended between making the folder and its first checkpoint
  what=("$PRESET" --out "$RUN" ${BATCH:+--batch "$BATCH"})
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# -m --: the dashes keep torchrun from taking a flag of ours for its own.
srun --kill-on-bad-exit=1 torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
  -m -- igebm train "${what[@]}" --steps "$STEPS" &
work=$!

# The signal comes to this script alone (B:), which hands it to srun, and srun to torchrun on every node.
ended=
trap 'ended=1; kill -TERM "$work"' TERM
code=0
wait "$work" || code=$?
while kill -0 "$work" 2>/dev/null; do wait "$work" || code=$?; done   # `wait` returns when the signal comes, too

if [ -n "$ended" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
