"""Where the sequences of a packed row end, read from a GPU once.

Every attention layer of a step is handed the same ``cu_seqlens``, and a kernel must not trust them unseen. On a GPU a
look at them waits for all that was launched before, so there what was found is kept for as long as the tensor lives,
and a copy can take over what its original held. On the CPU a look costs nothing, and sees what NumPy wrote as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple
from weakref import ref

from torch import Tensor


class SequenceEnds(NamedTuple):
    """What the numbers of a ``cu_seqlens`` say."""

    rising: bool
    """Whether they rise from 0, or stay as they are where a sequence is empty."""
    tokens: int
    """The last of them."""
    longest: int
    """Their largest difference."""


_READ_EACH_TIME: tuple[str, ...] = ("cpu",)
"""Kinds of devices."""
_Entry = tuple[ref[Tensor], int, SequenceEnds]
_known: dict[int, _Entry] = {}
"""By the id of the tensor, whose ``==`` compares elements: the tensor, its version, and what was found."""


def sequence_ends(cu_seqlens: Tensor) -> SequenceEnds:
    """What ``cu_seqlens``, integers [B + 1], says; of a GPU, read again only where torch wrote to the tensor since."""
    entry = _known.get(id(cu_seqlens))
    if entry is not None and entry[0]() is cu_seqlens and entry[1] == _version(cu_seqlens):
        return entry[2]
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    found = SequenceEnds(ends[0] == 0 and min(lengths, default=0) >= 0, ends[-1], max(lengths, default=0))
    _keep(cu_seqlens, found)
    return found


def same_sequence_ends(copy: Tensor, original: Tensor) -> None:
    """Say that ``copy`` holds the numbers of ``original``, which is read in its place."""
    if copy is not original and _version(copy) is not None:
        _keep(copy, sequence_ends(original))


def _version(x: Tensor) -> int | None:
    """How often torch wrote to it; None: read it each time. Writes in inference mode are not counted."""
    return None if x.device.type in _READ_EACH_TIME or x.is_inference() else x._version


def _keep(x: Tensor, found: SequenceEnds) -> None:
    version, key = _version(x), id(x)
    if version is not None:
        _known[key] = ref(x, lambda dead: _forget(key, dead)), version, found


def _forget(key: int, dead: ref[Tensor]) -> None:
    """Drop a tensor that is gone, not the one that may have its id by now."""
    if key in _known and _known[key][0] is dead:
        del _known[key]
