"""The errors a user can meet. Each says what is wrong, where, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TunecoreError(Exception):
    """Base of every error tunecore raises on purpose.

    Args:
        message: what is wrong and where (file and row, option, or plugin).
        hint: the way out, shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class ConfigError(TunecoreError):
    """An option is unknown, contradictory or out of range."""


class DataError(TunecoreError):
    """A file, a row or a label cannot be used."""


class PluginError(TunecoreError):
    """A plugin cannot be loaded, or one of its hooks failed."""


class NativeError(TunecoreError):
    """The compiled core is present but broken, or was called with tensors it does not take."""


class CheckpointError(TunecoreError):
    """A checkpoint, or another file of a run, is missing, damaged, of another run, or cannot be written."""


class InUseError(TunecoreError):
    """Another run is at work in the folder."""


class TrainingError(TunecoreError):
    """Training cannot go on: a loss or gradient is not finite, or a count does not match."""


def described(error: BaseException) -> str:
    """Return "TYPE: TEXT" of an error of somebody else's, also of one that cannot make its text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as another:
        return f"{type(error).__name__} (its text cannot be made: {type(another).__name__})"


class Interrupted(KeyboardInterrupt):
    """A signal ends what is going on at once; what was saved before is whole.

    Args:
        number: of the signal.
        reason: what to say where this process is not the one that got it.
    """

    def __init__(self, number: int, reason: str = "") -> None:
        super().__init__(reason)
        self.number = number


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return "unknown KIND 'NAME'; known: ..." with the nearest known names first."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = near + [n for n in names if n not in near]
    suffix = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}; known: {', '.join(listed) or '(none)'}.{suffix}"
