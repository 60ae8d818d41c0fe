"""tunecore: pretrain and fine-tune BERT-, GPT- and T5-family text models, packed, exact on resume, open to plugins.

Importing this package imports neither torch nor any plugin; names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tunecore.config import RunConfig
    from tunecore.engine import Engine
    from tunecore.errors import TunecoreError
    from tunecore.hookspecs import hookimpl
    from tunecore.ops import attention, dropout, masked_lm_loss

_LAZY = {
    "Engine": "tunecore.engine",
    "RunConfig": "tunecore.config",
    "TunecoreError": "tunecore.errors",
    "hookimpl": "tunecore.hookspecs",
    "attention": "tunecore.ops",
    "dropout": "tunecore.ops",
    "masked_lm_loss": "tunecore.ops",
}

__all__ = ["Engine", "RunConfig", "TunecoreError", "__version__", "attention", "dropout", "hookimpl", "masked_lm_loss"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tunecore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
