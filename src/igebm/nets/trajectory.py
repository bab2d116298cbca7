"""Time series (Fig. 14c): E(x | past) of the next state, and the same layers as a plain predictor of it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Layers(nn.Module):
    """dense 32; self-attention; conv1d 128; conv1d 128: (B, T, features) -> (B, width, T). No normalisation.

    `width` 128 is the figure's; the dense layer has width / 4 channels.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        d = max(1, width // 4)
        self.dense = nn.Linear(features, d)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.conv1 = nn.Conv1d(d, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, series: Float[Tensor, "b t f"]) -> Float[Tensor, "b c t"]:
        h = F.leaky_relu(self.dense(series), 0.2)  # (b, t, width / 4)
        # Written out, since the fused attention has no second derivative, which L_KL takes.
        scores = self.query(h) @ self.key(h).mT / h.shape[-1] ** 0.5  # (b, t, t)
        h = h + scores.softmax(-1) @ self.value(h)  # (b, t, width / 4)
        h = F.leaky_relu(self.conv1(h.mT), 0.2)  # (b, width, t)
        return F.leaky_relu(self.conv2(h), 0.2)


class TrajectoryEnergy(nn.Module):
    """E(x | y): the layers above, summed over time; dense -> 1   (Fig. 14c)

    x is (B, T, features), the states whose energy is asked; y is (B, past, features), the states before them, or None.
    Returns (B,).
    """

    def __init__(self, features: int, width: int = 128, past: int = 3):
        super().__init__()
        self.condition = past * features
        self.layers, self.head = Layers(features, width), nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b t f"], y: Float[Tensor, "b p f"] | None = None) -> Float[Tensor, "b"]:
        series = x if y is None else torch.cat([y, x], dim=1)  # (b, p + t, f)
        return self.head(self.layers(series).sum(-1))[:, 0]


class TrajectoryPredictor(nn.Module):
    """x̂(y): the same layers on the past, dense at its last state: the feed-forward model that section 5 compares with.

    y is (B, past, features); returns the next state (B, 1, features), as a change of the last one.
    """

    def __init__(self, features: int, width: int = 128, past: int = 3):
        super().__init__()
        self.condition = past * features
        self.layers, self.head = Layers(features, width), nn.Linear(width, features)

    def forward(self, y: Float[Tensor, "b p f"]) -> Float[Tensor, "b 1 f"]:
        return y[:, -1:] + self.head(self.layers(y)[..., -1])[:, None]
