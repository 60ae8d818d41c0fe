"""Gradual unfreezing: the top block learns first, and one more joins from time to time.

Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (ULMFiT, arXiv:1801.06146): the
last layer holds the least general knowledge, so it is unfrozen first, then the next lower one after each epoch.
A frozen parameter has no gradient, no decay and no optimizer state, and no backward pass runs below the lowest block
that learns; Adam's step counter of a parameter starts when it joins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.strategies.depth import EMBEDDINGS, Depths
from tunecore.types import Family, ParamPlan, Progress

NAME = "gradual_unfreezing"
_WORDS = ("top_down", "bottom_up")
_ROUNDING = 1e-9
"""0.3 / 0.1 is a little below 3."""


@dataclass(frozen=True, kw_only=True)
class GradualUnfreezingOptions:
    """Options of gradual_unfreezing."""

    every: float | None = 1.0
    """Steps or epochs until the next block joins; None spreads all evenly over the run."""
    unit: Literal["epoch", "step"] = "epoch"
    """What ``every`` counts."""
    order: str | tuple[int | str, ...] = "top_down"
    """top_down, bottom_up, or the blocks one by one, numbered from the input up from 0 (-1 is the top one) and
    "embeddings"; what such a list leaves out stays frozen."""
    initial: int = 1
    """How many of them learn from the start; heads always do."""
    embeddings: bool = True
    """Let the embeddings join last, after all blocks (for top_down and bottom_up)."""

    def __post_init__(self) -> None:
        if self.every is not None and not self.every > 0:
            raise ConfigError(f"{NAME}.every is {self.every}; it must be greater than 0")
        if self.initial < 0:
            raise ConfigError(f"{NAME}.initial is {self.initial}; it must not be negative")
        if isinstance(self.order, tuple) and len(self.order) == 1 and self.order[0] in _WORDS:
            object.__setattr__(self, "order", self.order[0])  # a run file may give one word for a list
        if isinstance(self.order, str):
            if self.order not in _WORDS:
                raise ConfigError(f"{NAME}.order is {self.order!r}; it must be {' or '.join(_WORDS)}, or a list")
            return
        for item in self.order:
            if isinstance(item, str) and item != "embeddings":
                raise ConfigError(f'{NAME}.order has {item!r}; a list holds numbers of blocks and "embeddings"')
        if len(set(self.order)) < len(self.order) or not self.order:
            raise ConfigError(f"{NAME}.order is {list(self.order)}; it must name something, and nothing twice")


class GradualUnfreezing:
    """The strategy ``gradual_unfreezing``."""

    name = NAME
    conflicts = ("full", "head_only")

    def __init__(self, options: GradualUnfreezingOptions) -> None:
        self.options = options
        self._depths: Depths | None = None
        self._order: tuple[int, ...] = ()

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Note in which order what joins; the model stays as it is.

        Raises:
            ConfigError: ``order`` names a block that is not there, or one twice.
        """
        self._depths = Depths(family.layers(model))
        self._order = self._resolved(self._depths.num_blocks)
        return model

    def _resolved(self, blocks: int) -> tuple[int, ...]:
        """The depths in the order they join."""
        order = self.options.order
        if isinstance(order, str):
            last = (EMBEDDINGS,) if self.options.embeddings else ()
            rising = range(1, blocks + 1)
            return (*(rising if order == "bottom_up" else reversed(rising)), *last)
        depths = []
        for item in order:
            if isinstance(item, int) and not -blocks <= item < blocks:
                raise ConfigError(f"{NAME}.order names block {item}; this model has {blocks}, 0 to {blocks - 1}")
            depths.append(EMBEDDINGS if isinstance(item, str) else item % blocks + 1)
        if len(set(depths)) < len(depths):
            raise ConfigError(f"{NAME}.order is {list(order)}; with {blocks} blocks that names one of them twice")
        return tuple(depths)

    def learning(self, progress: Progress) -> frozenset[int]:
        """The depths below the heads that learn in the coming step."""
        options, waiting = self.options, max(0, len(self._order) - self.options.initial)
        if options.every is None:
            joined = math.floor(progress.step * (waiting + 1) / max(1, progress.total_steps))
        else:
            done = progress.epoch if options.unit == "epoch" else progress.step
            joined = math.floor(done / options.every + _ROUNDING)
        return frozenset(self._order[: options.initial + joined])

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Freeze the blocks and embeddings that have not joined."""
        assert self._depths is not None
        learning = self.learning(progress) | {self._depths.head}
        return {n: replace(plan, trainable=False) for n, plan in plans.items() if self._depths.of(n) not in learning}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: what learns follows from the progress of the run."""
