"""Models with a likelihood, to compare an energy with (Table 2): Glow and PixelCNN++, trained on the same data.

`load(path)` gives a `Baseline`, whose `log_likelihood(images)` scores uint8 images.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .saved import Baseline, load

__all__ = ["Baseline", "load"]


def __getattr__(name: str) -> Any:
    # The command line reads the settings; it must not wait for torch.
    if name in __all__:
        from . import saved

        return getattr(saved, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
