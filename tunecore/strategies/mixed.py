"""Several strategies, each in its own part of the run: the head alone first, say, and then all layers.

``strategies: [a, b]`` of a run already joins strategies that hold all the time; ``mixed`` adds the time. Training a new
head before the model below it keeps the model's features from being torn by the head's first, random gradients (Kumar
et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv:2202.10054).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.training.plans import check_together, combine_plans, combined_multiplier, exported, observe, restored
from tunecore.types import Family, ParamPlan, Progress, Strategy

NAME = "mixed"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run, and the strategies that hold in it."""

    strategies: tuple[str | Mapping[str, Any], ...] = ()
    """Names or {name: options}, all at once; none trains everything. Within the phase a strategy counts steps and
    epochs from the phase's start."""
    until: float | None = None
    """Where the phase ends: a share of all steps up to 1, a number of steps above; None is the end of the run."""

    def __post_init__(self) -> None:
        if isinstance(self.strategies, str | Mapping):
            object.__setattr__(self, "strategies", (self.strategies,))
        object.__setattr__(self, "strategies", tuple(self.strategies))
        if self.until is not None and not self.until > 0:
            raise ConfigError(f"{NAME}.phases: until is {self.until}; it must be greater than 0")

    def end(self, total_steps: int) -> int:
        """The first step after the phase."""
        if self.until is None:
            return total_steps
        return min(total_steps, math.ceil(self.until * total_steps) if self.until <= 1 else round(self.until))


@dataclass(frozen=True, kw_only=True)
class MixedOptions:
    """Options of mixed."""

    phases: tuple[Phase, ...] = ()
    """The parts of the run in their order: [{until: 0.3, strategies: [head_only]}, {strategies:
    [layerwise_lr_decay]}]. Only the last may be without ``until``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(_phase(item, place) for place, item in enumerate(self.phases)))
        for place, (phase, following) in enumerate(pairwise(self.phases)):
            if phase.until is None:
                raise ConfigError(f"{NAME}.phases.{place} has no until, so the phases after it never come")
            end = following.until
            if end is not None and (phase.until > 1) == (end > 1) and end <= phase.until:
                raise ConfigError(f"{NAME}.phases.{place + 1} ends at {end}, not after {phase.until}")


def _phase(item: Any, place: int) -> Phase:
    if isinstance(item, Phase):
        return item
    known = set(Phase.__dataclass_fields__)
    if not isinstance(item, Mapping) or not set(item) <= known:
        raise ConfigError(f"{NAME}.phases.{place} is {item!r}; a phase has {' and '.join(sorted(known))}")
    return Phase(**item)


class Mixed:
    """The strategy ``mixed``: hands on to the strategies of the present phase."""

    name = NAME

    def __init__(self, options: MixedOptions) -> None:
        self.options = options
        self._phases: list[list[Strategy]] = [[] for _ in options.phases]

    def bind(self, make: Callable[[str | Mapping[str, Any]], Strategy]) -> None:
        """Make the strategies of all phases.

        Raises:
            ConfigError: one is unknown, two of a phase contradict each other, or one comes too late.
        """
        for place, phase in enumerate(self.options.phases):
            try:
                self._phases[place] = [make(item) for item in phase.strategies]
                check_together(self._phases[place])
            except ConfigError as error:
                raise ConfigError(f"{NAME}.phases.{place}: {error.message}", hint=error.hint) from error
            late = [s.name for s in self._phases[place] if place and getattr(s, "at_start", False)]
            if late:
                raise ConfigError(
                    f"{NAME}.phases.{place}: the strategy {late[0]!r} does its work before the first step",
                    hint="Put it into the first phase, or into the run's own list before mixed.",
                )

    @property
    def _all(self) -> list[Strategy]:
        return [strategy for phase in self._phases for strategy in phase]

    def _at(self, progress: Progress) -> tuple[list[Strategy], Progress]:
        """The strategies of the phase that the coming step is in, and the progress within it."""
        start, step = 0, min(progress.step, progress.total_steps - 1)  # after the last step, the last phase stays
        for phase, strategies in zip(self.options.phases, self._phases, strict=True):
            end = phase.end(progress.total_steps)
            if step < end:
                return strategies, _within(progress, start, end)
            start = max(start, end)
        return [], progress

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Let the strategies of all phases prepare the model, in their order."""
        for strategy in self._all:
            model = strategy.prepare(model, family)
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """What the strategies of the present phase say together.

        Raises:
            ConfigError: two of them contradict each other; both are named.
        """
        strategies, within = self._at(progress)
        return combine_plans(plans, strategies, within)

    def multiplier(self, progress: Progress) -> float:
        """The product of the present phase's."""
        strategies, within = self._at(progress)
        return combined_multiplier(strategies, within)

    def observe(self, metrics: Mapping[str, Any], progress: Progress) -> None:
        """Show what was measured to the strategies of the phase that the last step was in."""
        strategies, within = self._at(progress._replace(step=max(0, progress.step - 1)))
        observe(strategies, metrics, within._replace(step=within.step + 1))

    def export(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As all phases' strategies export, the last first."""
        return exported(self._all, model, tensors)

    def restore(self, model: PreTrainedModel) -> PreTrainedModel:
        """As all phases' strategies restore, the last first."""
        return restored(self._all, model)

    def state_dict(self) -> dict[str, Any]:
        return {"phases": [[strategy.state_dict() for strategy in phase] for phase in self._phases]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for phase, states in zip(self._phases, state["phases"], strict=True):
            for strategy, one in zip(phase, states, strict=True):
                strategy.load_state_dict(one)


def _within(progress: Progress, start: int, end: int) -> Progress:
    """Progress counted from ``start`` to ``end`` instead of over the whole run."""
    per_step = progress.total_epochs / progress.total_steps
    passed, total = progress.step - start, max(1, end - start)
    return Progress(passed, total, passed * per_step, total * per_step)
