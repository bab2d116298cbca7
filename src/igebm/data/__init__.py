"""Data sets: named ones, the Hugging Face hub, folders of images, .npz and .npy files; and batches of them.

`load(spec, split)` gives `Images`: uint8 pixels N x H x W x C with their labels. What needs torch (the loader and what
it does to pixels) is imported when it is first asked for, so that looking at data stays quick.
"""

from typing import TYPE_CHECKING, Any

from .images import Images, MissingSplit, silent
from .named import available, data_folder
from .sources import load
from .summary import check, check_series

if TYPE_CHECKING:
    from .loader import Loader, augment, batch_indices, centred, dequantise, quantise

__all__ = [
    "Images",
    "Loader",
    "MissingSplit",
    "augment",
    "available",
    "batch_indices",
    "centred",
    "check",
    "check_series",
    "data_folder",
    "dequantise",
    "load",
    "quantise",
    "silent",
]


def __getattr__(name: str) -> Any:
    if name in ("Loader", "augment", "batch_indices", "centred", "dequantise", "quantise"):
        from . import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
