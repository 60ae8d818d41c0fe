"""Which view a step trains when views take turns: a pure function of the step, even rather than random.

The first view gets the steps s at which floor(s * share + phase) grows, the next one likewise its part of the steps
that are left, and so on. So a view's number of steps in any window of n is that share of n to within one step (the
first view) or, for K views, less than K steps; and there is no state to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import floor

from tunecore.data.streams import derive_key


def view_of_step(weights: Mapping[str, float], seed: int, step: int) -> str:
    """The view that ``step`` (from 0) trains.

    Args:
        weights: view -> its weight, greater than 0; shares are relative to their sum.
        seed: fixes where in its rhythm each view begins.
        step: the optimizer step.
    """
    *others, last = weights
    left = sum(map(Fraction, weights.values()))
    for number, view in enumerate(others):
        share = Fraction(weights[view]) / left
        phase = Fraction(derive_key(seed, number), 1 << 63)
        before = floor(step * share + phase)
        if floor((step + 1) * share + phase) > before:
            return view
        step -= before
        left -= Fraction(weights[view])
    return last
