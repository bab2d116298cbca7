"""The replay buffer: where chains wait between training iterations, with their labels (the paper's section 3.1)."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .energy import over
from .errors import InputError, unknown
from .gpu import sent


class Draw(NamedTuple):
    """Starts of the next chains: x (n, *shape), labels y, the slots to write them back to, and which of them are
    fresh."""

    x: Tensor
    y: Tensor | None
    slots: Tensor
    fresh: Tensor


class Buffer:
    """`capacity` samples of one `shape` in one preallocated tensor: uint8 for images in [0, 1], or any float dtype.

    Empty at the start; fresh chains take new slots until it is full, so that a short run visits each of its chains
    often and a long one has the paper's many. A capacity of 0 means no replay: every chain starts afresh. `labels`
    gives the labels' dtype and shape as an empty tensor (0,) or (0, d), or None.

    policy "slots": drawn without replacement and written back to the drawn slots. "ring" (released code): drawn with
    replacement, first in, first out. rounding "unbiased": x 255 rounded at random, so that E[stored] = x, ends
    included.
    "release": floor(255 x), read as (u + U(0, 1)) / 256, which darkens by 0.4 % a visit; for comparison only.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.uint8,
        policy: Literal["slots", "ring"] = "slots",
        rounding: Literal["unbiased", "release"] = "unbiased",
        device: torch.device | str = "cpu",
    ):
        if capacity < 0:
            raise InputError(f"a buffer cannot hold {capacity} samples; give 0 for none")
        if policy not in ("slots", "ring"):
            raise unknown("policy", policy, ("slots", "ring"))
        if rounding not in ("unbiased", "release"):
            raise unknown("rounding", rounding, ("unbiased", "release"))
        self.x = torch.zeros((capacity, *shape), dtype=dtype, device=device)
        self.y = (
            None if labels is None else torch.zeros((capacity, *labels.shape[1:]), dtype=labels.dtype, device=device)
        )
        self.size, self.cursor = 0, 0
        self.policy, self.rounding = policy, rounding

    def __len__(self) -> int:
        return self.size

    @property
    def capacity(self) -> int:
        return len(self.x)

    def draw(
        self,
        x_fresh: Tensor,
        y_fresh: Tensor | None,
        restart: float,
        host: torch.Generator | None = None,
        device: torch.Generator | None = None,
    ) -> Draw:
        """n chain starts: stored ones, each replaced by its row of `x_fresh` (n, *shape) with probability `restart`.

        Where the buffer does not hold enough yet the rest are fresh as well. `host` draws the slots (a CPU generator),
        `device` the rounding noise. Raises InputError where n is beyond the capacity.
        """
        n = len(x_fresh)
        if self.capacity == 0:
            return Draw(x_fresh, y_fresh, torch.empty(0, dtype=torch.long), torch.ones(n, dtype=torch.bool))
        if n > self.capacity:
            raise InputError(f"a batch of {n} chains does not fit a buffer of {self.capacity}; raise the buffer's size")
        fresh = torch.rand(n, generator=host) < restart
        if self.policy == "ring":
            fresh |= self.size == 0
            kept = torch.randint(max(1, self.size), (n,), generator=host)
            slots = (self.cursor + torch.arange(n)) % self.capacity
        else:
            kept, slots, fresh = self._slots(n, fresh, host)
        here, at = sent(fresh, x_fresh.device), sent(kept, self.x.device)
        x = torch.where(over(here, x_fresh), x_fresh, self._decode(self.x[at], x_fresh.dtype, device))
        y = y_fresh
        if self.y is not None and y_fresh is not None:
            y = torch.where(over(here, y_fresh), y_fresh, self.y[at])
        return Draw(x, y, slots, here)

    def _slots(self, n: int, fresh: Tensor, host: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct slots to read and to write: the same ones for continued chains; empty ones first for fresh
        chains."""
        order = torch.randperm(self.size, generator=host)
        old = (~fresh).nonzero()[:, 0]
        fresh = fresh.clone()
        fresh[old[self.size :]] = True
        old, new = old[: self.size], fresh.nonzero()[:, 0]
        empty = torch.arange(self.size, self.capacity)[: len(new)]
        slots = torch.empty(n, dtype=torch.long)
        slots[old] = order[: len(old)]
        slots[new] = torch.cat([empty, order[len(old) :]])[: len(new)]
        return slots.clamp(max=max(0, self.size - 1)), slots, fresh

    def write(self, slots: Tensor, x: Tensor, y: Tensor | None, device: torch.Generator | None = None) -> None:
        """Store chains' ends x (n, *shape) and labels in the slots that `draw` gave."""
        if self.capacity == 0:
            return
        where = sent(slots, self.x.device)
        self.x[where] = self._encode(x.detach(), device)
        if self.y is not None and y is not None:
            self.y[where] = y
        self.size = max(self.size, int(slots.max()) + 1)
        self.cursor = (int(slots[-1]) + 1) % self.capacity if self.policy == "ring" else 0

    def read(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """n stored samples in [0, 1] (or as stored) with their labels, without replacement, for looking at; fewer if
        it holds fewer."""
        slots = torch.randperm(self.size, generator=generator)[:n].to(self.x.device)
        x = self.x[slots]
        return (x / 255.0 if x.dtype == torch.uint8 else x), (None if self.y is None else self.y[slots])

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.x.dtype != torch.uint8:
            return x.to(self.x.dtype)
        scaled = 255 * x.clamp(0, 1)
        if self.rounding == "unbiased":
            scaled = scaled + torch.rand(x.shape, generator=generator, device=x.device)  # floor(a + U) has mean a
        return scaled.clamp(max=255).to(torch.uint8)

    def _decode(self, stored: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
        if stored.dtype != torch.uint8:
            return stored.to(dtype)
        if self.rounding == "unbiased":
            return stored.to(dtype) / 255
        u = torch.rand(stored.shape, generator=generator, device=stored.device, dtype=dtype)
        return (stored.to(dtype) + u) / 256

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint; only the slots in use."""
        return {
            "x": self.x[: self.size].cpu().clone(),  # a view would save its whole storage
            "y": None if self.y is None else self.y[: self.size].cpu().clone(),
            "cursor": self.cursor,
            "capacity": self.capacity,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises InputError where the saved buffer has another capacity, sample shape or dtype, or does not fit
        itself."""
        x, y = saved["x"], saved["y"]
        kind = lambda t: None if t is None else (t.dtype, tuple(t.shape[1:]))
        for what, got, want in (
            ("capacity", saved["capacity"], self.capacity),
            ("sample shape", tuple(x.shape[1:]), tuple(self.x.shape[1:])),
            ("dtype", x.dtype, self.x.dtype),
            ("labels", kind(y), kind(self.y)),
        ):
            if got != want:
                raise InputError(
                    f"the saved buffer's {what} is {got}, this run's is {want}; resume with the settings it was "
                    f"made with"
                )
        if len(x) > self.capacity or (y is not None and len(y) != len(x)) or not 0 <= saved["cursor"] <= self.capacity:
            raise InputError(
                f"the saved buffer is damaged: {len(x)} samples, {'no' if y is None else len(y)} labels and the cursor "
                f"at {saved['cursor']}, for a capacity of {self.capacity}"
            )
        self.size, self.cursor = len(x), saved["cursor"]
        self.x[: self.size] = x.to(self.x.device)
        if self.y is not None and y is not None:
            self.y[: self.size] = y.to(self.y.device)
