"""A text longer than a model takes, cut into windows that overlap.

What is cut is a row of units (words, or single pieces), each so many pieces long; a unit is never divided.
Shape letters: U units of the text, W windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.errors import ConfigError
from tunecore.types import IntArray


class Window(NamedTuple):
    """Units ``first``, ..., ``stop - 1`` of a text."""

    first: int
    stop: int


def cut_windows(sizes_U: IntArray, room: int, overlap: int) -> list[Window]:
    """Windows of at most ``room`` pieces that cover every unit, in order, each as full as its units allow.

    Args:
        sizes_U: pieces of each unit, 1 to ``room``.
        room: most pieces of a window.
        overlap: most pieces that a window shares with the one before; as many as leave room for one unit more.

    Returns:
        One window at least, the empty one for a text without units.

    Raises:
        ConfigError: ``room`` is none.
    """
    if room < 1:
        raise ConfigError("special tokens leave no room for text", hint="Raise data.max_length.")
    ends = np.concatenate(([0], np.cumsum(sizes_U)))
    total, first = len(sizes_U), 0
    windows: list[Window] = []
    while True:
        stop = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
        windows.append(Window(first, stop))
        if stop == total:
            return windows
        # The next window begins as early as overlap and the unit that this one could not take allow.
        least = max(ends[stop] - overlap, ends[stop + 1] - room)
        first = max(int(np.searchsorted(ends, least)), first + 1)


def most_context(sizes_U: IntArray, windows: list[Window]) -> IntArray:
    """The window each unit is best read from: int64 [U].

    It is the one that leaves most pieces between the unit and the nearer of the window's cut edges (the "maximum
    context" of Devlin et al. 2018 for SQuAD; an edge of the text itself cuts nothing off); the earlier of equals.
    """
    total = len(sizes_U)
    if len(windows) == 1:
        return np.zeros(total, np.int64)
    ends = np.concatenate(([0], np.cumsum(sizes_U)))
    context_WU: NDArray[np.float64] = np.full((len(windows), total), -1.0)
    for row, (first, stop) in zip(context_WU, windows, strict=True):
        left = ends[first:stop] - ends[first] if first else np.inf
        right = ends[stop] - ends[first + 1 : stop + 1] if stop < total else np.inf
        row[first:stop] = np.minimum(left, right)
    best_U: IntArray = context_WU.argmax(0).astype(np.int64)
    return best_U
