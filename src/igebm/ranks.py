"""Several processes at one job (torchrun): who this one is, and what they tell each other. Alone, each call is free.

Arrays and tensors travel, never pickles. Work that is shared goes round in parts, each of which seeds its own random
numbers, so that it does not matter which process does it. The command is

    torchrun --nproc-per-node 2 -m -- igebm eval NAME MODEL ...

where the two dashes alone keep torchrun from taking `--n` for an option of its own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .errors import Fault, InputError
from .limits import processes

LONGEST = timedelta(hours=12)
"""that a process waits for the others; torch's minutes are less than some work of one for all (a classifier, a large
data set)"""
KINDS = ["float32", "float64", "int64", "uint8", "bool"]


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, if it did. Raises Fault where one of them is lost on the way."""
    if processes() == 1 or dist.is_initialized():
        yield
        return
    # Tensors on GPUs go by NCCL, those on the host (files, flags) by gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=LONGEST)
    try:
        yield
    except RuntimeError as error:
        if re.search("Connection (closed|reset)|Broken pipe|[Tt]imed out|NCCL", str(error)):
            again = "start all of them again (igebm train --resume RUN goes on where it was saved)"
            raise Fault(f"another of the {size()} processes has ended; {again}") from error
        raise
    finally:
        dist.destroy_process_group()


def batches(n: int, size: int) -> Iterator[slice]:
    """The slices that cut n items into batches of at most `size`."""
    return (slice(a, min(n, a + size)) for a in range(0, n, size))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


def from_all(mine: np.ndarray | None) -> list[np.ndarray]:
    """The arrays that processes have, in their order, on every process; those without one (None) are left out."""
    if size() > 1:
        return [a for a in gather(mine) if len(a)]
    return [] if mine is None else [mine]


def agree(flag: bool) -> bool:
    """Whether any process says so."""
    if size() == 1:
        return flag
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in one coalesced reduction."""
    if size() == 1:
        return
    flat = _flatten_dense_tensors(list(tensors))
    dist.all_reduce(flat)
    for t, new in zip(tensors, _unflatten_dense_tensors(flat / size(), list(tensors)), strict=True):
        t.copy_(new)


def text(said: str) -> str:
    """What the first process says."""
    if size() == 1:
        return said
    sent = np.frombuffer(said.encode(), np.uint8) if rank() == 0 else None
    return gather(None if sent is None else sent.copy())[0].tobytes().decode()


def first_does(work: Callable[[], None]) -> None:
    """`work()` by the first process, for which the others wait. What it raises all raise, an InputError or a Fault of
    the others with its words, so that none waits for one that has gone."""
    failed = None
    if rank() == 0:
        try:
            work()
        except Exception as error:
            failed = error
    if not agree(failed is not None):
        return
    kind = InputError if agree(isinstance(failed, InputError)) else Fault
    said = text(str(failed))
    raise failed or kind(said)


def my_parts(n: int, batch: int) -> list[slice]:
    """This process's share of the parts of at most `batch` that n items are cut into."""
    return list(batches(n, batch))[rank() :: size()]


def rows(
    n: int, batch: int, compute: Callable[[slice], np.ndarray], step: Callable[[int, int], None] = lambda *_: None
) -> np.ndarray:
    """The rows (n, ...) that `compute(part)` gives for parts of at most `batch`, in order, on every process."""
    parts = list(batches(n, batch))
    mine = []
    for part in my_parts(n, batch):
        mine.append(np.asarray(compute(part)))
        assert len(mine[-1]) == part.stop - part.start, f"{len(mine[-1])} rows for {part}"
        step(part.stop, n)
    if size() == 1:
        return np.concatenate(mine)
    every = gather(np.concatenate(mine) if mine else None)
    # Process r did the parts r, r + size, ...: deal them back in order.
    taken, out = [0] * size(), []
    for i, part in enumerate(parts):
        r, length = i % size(), part.stop - part.start
        out.append(every[r][taken[r] : taken[r] + length])
        taken[r] += length
    return np.concatenate(out)


def gather(mine: np.ndarray | None) -> list[np.ndarray]:
    """Every process's array (its first axis may differ; None: nothing), on every process. Tensors alone travel."""
    about = torch.zeros(10, dtype=torch.int64)  # kind, axes, lengths
    if mine is not None:
        about[: 2 + mine.ndim] = torch.tensor([KINDS.index(mine.dtype.name), mine.ndim, *mine.shape])
    abouts = [torch.empty_like(about) for _ in range(size())]
    dist.all_gather(abouts, about)
    kind, axes, *shape = next(a for a in abouts if a[1] > 0).tolist()
    lengths = [int(a[2]) for a in abouts]
    padded = np.zeros((max(lengths), *shape[1:axes]), KINDS[kind])
    if mine is not None:
        padded[: len(mine)] = mine
    sent = torch.from_numpy(padded)
    received = [torch.empty_like(sent) for _ in range(size())]
    dist.all_gather(received, sent)
    return [r.numpy()[:length] for r, length in zip(received, lengths, strict=True)]
