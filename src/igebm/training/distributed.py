"""One run in several processes (torchrun): each has its data, its chains and its part of the buffer; the weights are
the same in all, since every update takes the mean of their gradients.

Chains run on the bare network and need no communication. An iteration costs one coalesced reduction of the gradients
and one of its metrics.
"""

from typing import Any

import torch
from torch import nn

from .. import ranks


def average_gradients(net: nn.Module) -> None:
    """The mean of the processes' gradients, each of its own share of the batch: the gradient of the whole batch (of
    eq. 8 with the softmax over each share)."""
    ranks.mean_([p.grad for p in net.parameters() if p.grad is not None])


def gathered(buffer: dict[str, Any]) -> dict[str, Any]:
    """The parts of a replay buffer as one, for a checkpoint: the same as one process's, and how long the parts are."""
    if ranks.size() == 1:
        return buffer
    parts = [torch.from_numpy(x) for x in ranks.gather(buffer["x"].numpy())]
    y = buffer["y"]
    labels = None if y is None else torch.cat([torch.from_numpy(part) for part in ranks.gather(y.numpy())])
    return buffer | {
        "x": torch.cat(parts),
        "y": labels,
        "capacity": buffer["capacity"] * ranks.size(),
        "parts": [len(part) for part in parts],
    }


def shared(saved: dict[str, Any], capacity: int) -> dict[str, Any]:
    """This process's part of a saved buffer, one of `capacity`: the part it had, or, where the number of processes has
    changed, every size-th sample from its rank on, as many as there is room for."""
    size, rank, parts = ranks.size(), ranks.rank(), saved.get("parts", [len(saved["x"])])
    if len(parts) == size:
        mine = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        had, cursor = saved["capacity"] // size, saved["cursor"]
    else:
        mine = slice(rank, None, size)
        # A ring goes on behind the last sample: what lies beyond it is empty, and no image.
        had, cursor = capacity, min(capacity, len(saved["x"][mine])) % max(1, capacity)
    cut = lambda t: None if t is None else t[mine][:had]
    return saved | {"x": cut(saved["x"]), "y": cut(saved["y"]), "capacity": had, "cursor": cursor}
