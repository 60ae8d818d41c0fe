"""The built-in trackers by name; ``tunecore/builtin.py`` registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunecore.tracking.jsonl import JsonlOptions, JsonlTracker
from tunecore.tracking.progress import ProgressOptions, ProgressTracker
from tunecore.tracking.tensorboard import TensorboardOptions, TensorboardTracker

TRACKERS: dict[str, tuple[Callable[[Any], Any], type]] = {
    "jsonl": (JsonlTracker, JsonlOptions),
    "progress": (ProgressTracker, ProgressOptions),
    "tensorboard": (TensorboardTracker, TensorboardOptions),
}
"""Name -> (factory, Options), as ``register(name, factory, Options)`` takes them."""
