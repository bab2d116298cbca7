"""Values as JSON has them, for what is printed and what is written."""

import math
import os
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON has it: names as text, tuples as lists, and null for a number that is not finite, for which JSON
    has no word."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, os.PathLike) else value
