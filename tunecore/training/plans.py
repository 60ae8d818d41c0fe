"""What the strategies of a run say together: one plan per parameter, one multiplier, one saved model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.registry import Registry, name_and_options
from tunecore.types import ParamPlan, Progress, Strategy

_FIELDS = tuple(field.name for field in dataclasses.fields(ParamPlan))


def make_strategies(items: Sequence[str | Mapping[str, Any]], registry: Registry) -> list[Strategy]:
    """Make strategies from names and {name: options}, those that others are made of included.

    Raises:
        ConfigError: an unknown strategy or option, or two that cannot share a run; both are named.
    """

    def make(item: str | Mapping[str, Any]) -> Strategy:
        strategy: Strategy = registry.create("strategy", *name_and_options(item, "strategies"))
        if hasattr(strategy, "bind"):
            strategy.bind(make)
        return strategy

    made = [make(item) for item in items]
    check_together(made)
    return made


def check_together(strategies: Sequence[Strategy]) -> None:
    """Refuse strategies that say they cannot share a run.

    Raises:
        ConfigError: both are named.
    """
    for one in strategies:
        for other in strategies:
            if other is not one and other.name in getattr(one, "conflicts", ()):
                raise ConfigError(
                    f"strategies {one.name!r} and {other.name!r} contradict each other",
                    hint="Leave one of them out, or give each its own time with the strategy mixed.",
                )


def combine_plans(
    base: Mapping[str, ParamPlan], strategies: Sequence[Strategy], progress: Progress
) -> dict[str, ParamPlan]:
    """Ask every strategy for its changes to ``base`` and join them; their order does not matter.

    Raises:
        ConfigError: two strategies change one field of a parameter to different values, or a strategy names a
            parameter that is not there.
    """
    owners: dict[tuple[str, str], Strategy] = {}
    plans = dict(base)
    for strategy in strategies:
        for name, wanted in strategy.plan(base, progress).items():
            if name not in base:
                raise ConfigError(f"strategy {strategy.name!r} plans {name!r}, which is no parameter of this model")
            if wanted == base[name]:
                continue
            changes = {f: getattr(wanted, f) for f in _FIELDS if getattr(wanted, f) != getattr(base[name], f)}
            for field, value in changes.items():
                other = owners.setdefault((name, field), strategy)
                if other is not strategy and getattr(plans[name], field) != value:
                    raise ConfigError(
                        f"strategies {other.name!r} and {strategy.name!r} both set {field} of {name!r}, to "
                        f"{getattr(plans[name], field)} and {value}",
                        hint="Leave one of them out of strategies.",
                    )
            plans[name] = dataclasses.replace(plans[name], **changes)
    return plans


def combined_multiplier(strategies: Sequence[Strategy], progress: Progress) -> float:
    """The product of the strategies' factors of the learning rate.

    Raises:
        ConfigError: one of them is negative or not finite.
    """
    product = 1.0
    for strategy in strategies:
        if hasattr(strategy, "multiplier"):
            factor = strategy.multiplier(progress)
            if not (math.isfinite(factor) and factor >= 0):
                raise ConfigError(f"strategy {strategy.name!r} multiplies the learning rate by {factor}")
            product *= factor
    return product


def observe(strategies: Sequence[Strategy], metrics: Mapping[str, Any], progress: Progress) -> None:
    """Show the strategies that ask for it what was measured; times stay out, which differ from rank to rank."""
    listeners = [strategy.observe for strategy in strategies if hasattr(strategy, "observe")]
    if listeners:
        shown = {name: value for name, value in metrics.items() if not name.startswith("time/")}
        for listener in listeners:
            listener(shown, progress)


def exported(
    strategies: Sequence[Strategy], model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors to save for those of the model as the strategies made it; the last that changed it goes first."""
    result = dict(tensors)
    for strategy in reversed(strategies):
        if hasattr(strategy, "export"):
            result = dict(strategy.export(model, result))
    return result


def restored(strategies: Sequence[Strategy], model: PreTrainedModel) -> PreTrainedModel:
    """The model with the parameters it had before the strategies prepared it."""
    for strategy in reversed(strategies):
        if hasattr(strategy, "restore"):
            model = strategy.restore(model)
    return model
