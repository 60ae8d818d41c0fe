"""Halves of characters: what an escape in JSON or YAML can make, and no file or tokenizer takes."""

from __future__ import annotations

import json
from typing import Any

LONE_SURROGATE = "a lone surrogate (half of a character), which is no text"


def has_lone_surrogate(value: Any) -> bool:
    """Whether a text, or one anywhere in a value of JSON, cannot be encoded."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
