"""How large the tiles of the fused kernels are best: each convolution of Figure 14a's step, by every tile that fits it.
`python benchmarks/tiles.py --name MACHINE`, on a GPU that they are for.

Microseconds of one launch, of twenty recorded as one CUDA graph, the best of several; the operations' share of a large
matrix product's rate. Writes results/NAME-tiles.json beside this file.
"""

import argparse
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from igebm.benchmarks.speed import CLASSES, FIGURE_14A, matrix_rate, start
from igebm.circumstances import circumstances
from igebm.files import write_json
from igebm.model import Shape, build_image_net
from igebm.nets import fold, fused
from igebm.runtime import probe

TILES = [
    fused.Tile(*sizes)
    for sizes in (
        (256, 128, 64, 4, 8), (256, 128, 64, 3, 8), (256, 64, 64, 4, 8), (128, 256, 64, 3, 8), (128, 128, 64, 4, 8),
        (128, 128, 64, 3, 8), (128, 128, 64, 4, 4), (128, 128, 64, 3, 4), (128, 64, 64, 4, 4), (64, 128, 64, 4, 4),
        (64, 64, 64, 4, 4), (64, 64, 128, 3, 4),
    )
]  # fmt: skip


def launches(width: int, batch: int) -> list[tuple[tuple, dict[str, Any]]]:
    """What a step asks of `fused._launched`, in turn."""
    net = build_image_net(replace(FIGURE_14A, width=width), Shape(3, 32, 32, CLASSES)).cuda().requires_grad_(False)
    x, y = start(probe("cuda"), batch)
    weights = fold._map(lambda w: w.bfloat16(), fold.fold(net))
    weights = fold._map(torch.Tensor.contiguous, fused.pack(weights))
    found, plain = [], fused._launched

    def noted(*args: Any, **around: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found.append((args, around))
        return plain(*args, **around)

    fused._launched = noted
    fused.value_and_grad(net, weights, fold.bind(net, y, torch.bfloat16), x)
    fused._launched = plain
    return found


def fitting(args: tuple, around: dict[str, Any]) -> list[fused.Tile]:
    c_in, c_out = args[0].shape[3], args[1].shape[1]
    fits = lambda t: c_out % t.channels == 0 and c_in % t.depth == 0
    whole = lambda t: "stem" not in around or t.channels == c_out  # all channels in one tile
    return [t for t in TILES if fits(t) and whole(t)]


def launched(tile: fused.Tile, args: tuple, around: dict[str, Any]) -> None:
    fused.tile = lambda *_: tile
    fused._launched(*args, **around)


def compiled(job: tuple[int, int, int, int]) -> None:
    width, batch, first, step = job
    work = [(tile, *call) for call in launches(width, batch) for tile in fitting(*call)]
    for tile, args, around in work[first::step]:
        try:
            launched(tile, args, around)
        except Exception as error:  # more memory than there is, say: `microseconds` leaves it out
            print(f"{tile}: {str(error).splitlines()[0]}", flush=True)


def microseconds(tile: fused.Tile, args: tuple, around: dict[str, Any], n: int = 20) -> float:
    try:
        launched(tile, args, around)
    except Exception:
        return float("inf")
    graph, best = torch.cuda.CUDAGraph(), float("inf")
    with torch.cuda.graph(graph):
        for _ in range(n):
            launched(tile, args, around)
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / n * 1e3)
    return best


def flop(args: tuple) -> int:
    """2 x pixels x the matrix: of the result's pixels, and where that is twice the size of its quarter for each."""
    x, w, how = args
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * w.numel() // (4 if how == fused.DOWN else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the kind of machine, for the file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    runtime, chosen, n = probe("cuda"), fused.tile, 14
    jobs = [(asked.width, asked.batch, i, n) for i in range(n)]
    with multiprocessing.get_context("spawn").Pool(n) as pool:
        pool.map(compiled, jobs)
    limit, rows = matrix_rate(runtime, torch.bfloat16), []
    for args, around in launches(asked.width, asked.batch):
        x, w, how = args
        then = fused.LAST if "stem" in around else fused.BACK if "positive" in around else fused.FORTH
        times = {tile: microseconds(tile, args, around) for tile in fitting(args, around)}
        pixels = x.shape[0] * x.shape[1] * x.shape[2] // (4 if how == fused.DOWN else 1)
        mine = chosen(pixels * (4 if how == fused.UP else 1) * w.shape[1] / 128**2, x.shape[3], w.shape[1], then)
        row = {
            "how": ("same", "down", "up")[how],
            "then": ("forth", "back", "last")[then],
            "image": list(x.shape[1:]),
            "channels_out": w.shape[1],
            "gflop": flop(args) / 1e9,
            "chosen": {"tile": list(mine), "us": times[mine], "share": flop(args) / times[mine] * 1e6 / limit},
            "best": [{"tile": list(tile), "us": us} for tile, us in sorted(times.items(), key=lambda t: t[1])[:4]],
        }
        rows.append(row)
        print({k: row[k] for k in ("how", "then", "image", "channels_out", "chosen")}, row["best"][0], flush=True)
    total = {"chosen": sum(r["chosen"]["us"] for r in rows), "best": sum(r["best"][0]["us"] for r in rows)}
    print(total)
    command = f"python benchmarks/tiles.py --name {asked.name} --width {asked.width} --batch {asked.batch}"
    found = {"width": asked.width, "batch": asked.batch, "matrix_rate": limit, "us": total, "rows": rows}
    write_json(asked.out / f"{asked.name}-tiles.json", {"machine": circumstances(runtime, command)} | found)


if __name__ == "__main__":
    main()
