"""The longest sequence of each step, where it grows over the start of a run: a pure function of the step's number.

Short sequences first make the start of training stable and cheap (Li et al. 2022, "The Stability-Efficiency Dilemma",
arXiv:2108.06084; Press et al. 2021, Shortformer, arXiv:2012.15832). Rows stay the same, and so does their order: of a
row longer than its step allows, the end is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

MULTIPLE = 8
"""Lengths between the first and the last are multiples of this."""


@dataclass(frozen=True)
class LengthWarmup:
    """Lengths in tokens from ``start`` to ``full``, in a straight line over ``steps`` steps."""

    start: int
    full: int
    steps: int

    def at(self, step: int) -> int:
        """The longest sequence of ``step`` (from 0)."""
        if step >= self.steps:
            return self.full
        grown = self.start + (self.full - self.start) * step // self.steps
        return max(self.start, grown - grown % MULTIPLE)
