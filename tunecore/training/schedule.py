"""Learning-rate schedules: a multiplier of the peak rate at each step, each after the same warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunecore.errors import ConfigError
from tunecore.registry import NoOptions

Schedule = Callable[[int, int], float]
"""``schedule(step, total_steps) -> multiplier``, ``step`` from 0 to total_steps - 1; warm-up steps are not counted."""


@dataclass(frozen=True)
class CosineOptions:
    """Options of the ``cosine`` schedule."""

    min_ratio: float = 0.0
    """Multiplier at the end."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1:
            raise ConfigError(f"schedule cosine: min_ratio is {self.min_ratio}; it must be between 0 and 1")


def linear(options: NoOptions) -> Schedule:
    """From 1 down to 0 in a straight line; 0 would be the step after the last."""
    return lambda step, total: max(0.0, 1.0 - step / max(1, total))


def cosine(options: CosineOptions) -> Schedule:
    """Half a cosine from 1 to ``min_ratio``. Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983."""
    low = options.min_ratio

    def multiplier(step: int, total: int) -> float:
        done = min(1.0, step / max(1, total))
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done))

    return multiplier


def constant(options: NoOptions) -> Schedule:
    """1 at every step."""
    return lambda step, total: 1.0


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Read ``training.warmup``: a share of all steps below 1, a number of steps from 1 on; at most all of them."""
    steps = math.ceil(warmup * total_steps) if warmup < 1 else round(warmup)
    return min(steps, total_steps)


def with_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Rise in a straight line to 1 over the warm-up, then follow ``schedule`` over the steps that are left.

    The first step has a rate above 0, so no step is spent without a change.
    """

    def multiplier(step: int, total: int) -> float:
        rising = warmup_steps(warmup, total)
        if step < rising:
            return (step + 1) / rising
        return schedule(step - rising, total - rising)

    return multiplier


SCHEDULES: dict[str, tuple[Callable[[Any], Schedule], type]] = {
    "linear": (linear, NoOptions),
    "cosine": (cosine, CosineOptions),
    "constant": (constant, NoOptions),
}
"""Name -> (factory, Options), as ``register(name, factory, Options)`` takes them."""
