"""Metric values as plain JSON, with what is not finite written as a word.

JSON has no NaN. Python's own writer emits the bare word NaN, which other readers refuse, and a null or a clipped
number would hide that something went wrong. So a value that is not finite is the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain(value: Any) -> Any:
    """Return ``value`` made of dicts, lists, strings, ints, bools, None and finite floats only.

    Tensors and arrays (anything with ``tolist``) become numbers or nested lists; other objects their ``str``.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def number(value: Any) -> float | None:
    """Read a scalar back: the words "nan", "inf", "-inf" as floats, None for what is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        return _WORDS.get(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return number(value.item())
    return None
