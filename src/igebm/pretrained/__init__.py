"""Models that come with the package: NAME.safetensors (bfloat16 weights) with its card NAME.json, made by
benchmarks/bundle.py."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def of_images() -> list[str]:
    """Those that are sampled, without the models of time series."""
    return [name for name in names() if "series" not in card(name)]


def card(name: str) -> dict[str, Any]:
    """What the model was trained on and how, and what it can and cannot do."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
