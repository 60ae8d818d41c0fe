"""Which call of a layer this is, where one forward calls the same layer several times (ALBERT's layers are shared).

A dropout site is a property of its module and never a call counter, so a layer that is recomputed under gradient
checkpointing draws the mask it drew before. Calls of a shared layer are told apart by the loop that makes them, which
says the number inside what is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_number = 0
# A plain global and not a context variable, which torch.compile cannot trace. One thread runs a model at a time: the
# engine's own, or that of its backward pass while the other waits.
_SITE_BITS = 16
"""A site is a 32-bit word: the module's number below, the number of the call above."""


@contextmanager
def invocation(number: int) -> Iterator[None]:
    """Within it, attention and dropout modules draw as in call ``number`` (from 0) of themselves."""
    global _number
    before, _number = _number, number
    try:
        yield
    finally:
        _number = before


def site_of_call(site: int) -> int:
    """The dropout site of a module in the present call: ``site`` itself in call 0, and outside any."""
    return site + (_number << _SITE_BITS)
