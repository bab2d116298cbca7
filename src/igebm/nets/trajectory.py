"""The trajectory energy of Figure 14c: E(x | past) of the next states of a time series."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class TrajectoryEnergy(nn.Module):
    """dense 32; self-attention; conv1d 128; conv1d 128; dense -> 1   (Fig. 14c); no normalisation.

    x is (B, T, features), the states whose energy is asked; y is (B, past, features), the states before them, or None.
    `width` 128 is the figure's; the dense layer has width / 4 channels. Returns (B,).
    """

    def __init__(self, features: int, width: int = 128):
        super().__init__()
        d = max(1, width // 4)
        self.dense = nn.Linear(features, d)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.conv1 = nn.Conv1d(d, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b t f"], y: Float[Tensor, "b p f"] | None = None) -> Float[Tensor, "b"]:
        series = x if y is None else torch.cat([y, x], dim=1)  # (b, p + t, f)
        h = F.leaky_relu(self.dense(series), 0.2)  # (b, p + t, width / 4)
        # Written out, since the fused attention has no second derivative, which L_KL takes.
        scores = self.query(h) @ self.key(h).mT / h.shape[-1] ** 0.5  # (b, p + t, p + t)
        h = h + scores.softmax(-1) @ self.value(h)  # (b, p + t, width / 4)
        h = F.leaky_relu(self.conv1(h.mT), 0.2)  # (b, width, p + t)
        h = F.leaky_relu(self.conv2(h), 0.2)
        return self.head(h.sum(-1))[:, 0]
