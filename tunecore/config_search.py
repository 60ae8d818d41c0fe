"""The section ``search`` of a run: which options are searched over, and how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunecore.errors import ConfigError

FIXED = ("output_dir", "stages", "search", "plugins", "checkpoint", "tracking", "data.test", "evaluation.metric")
"""Options, or sections of them, that are the same in every trial."""
DEFAULT_TRIALS = 20


@dataclass(frozen=True, slots=True)
class Choices:
    """A parameter that takes one of a list of values."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values as scalars, for storage and tables: a list or mapping as its JSON."""
        return tuple(value if _is_scalar(value) else json.dumps(value, sort_keys=True) for value in self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``low`` to ``high``, both included; whole numbers where both bounds are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        return all(isinstance(bound, int) for bound in (self.low, self.high))


Parameter = Choices | Range


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """A search for the best options, where ``space`` names any: many runs, of which the best one's model is kept."""

    space: Mapping[str, Any] = field(default_factory=dict)
    """Dotted option -> a list of values, or a range: {training.learning_rate: {low: 1e-5, high: 1e-4, log: true},
    training.epochs: [2, 3], strategies: [[], [head_only]]}. A range may have a step."""
    trials: int | None = None
    """How many runs; None is 20, and all combinations with the grid sampler."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe learns from finished trials (Bergstra et al. 2011), random does not, grid takes every combination."""
    seed: int | None = None
    """Fixes what is tried, and with the trial's number its training.seed; None is training.seed."""
    metric: str | None = None
    """What to search for, as evaluation.metric; None takes that, or the head's own, or -loss."""
    pruner: Literal["none", "median"] = "none"
    """median ends a trial whose best evaluation so far is worse than the median of the others' after as many
    passes over the data."""
    startup_trials: int = 5
    """Finished trials before any is pruned."""

    def __post_init__(self) -> None:
        for name, value in (("trials", self.trials), ("startup_trials", self.startup_trials)):
            if value is not None and value < 1:
                raise ConfigError(f"search.{name} is {value}; it must be greater than 0")
        parameters = self.parameters
        if self.sampler != "grid":
            return
        for name, parameter in parameters.items():
            if isinstance(parameter, Range):
                raise ConfigError(
                    f"search.space.{name} is a range, and the grid sampler takes lists only",
                    hint="List its values, or set search.sampler: tpe.",
                )

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The space, read and checked.

        Raises:
            ConfigError: a parameter is neither a list of values nor a range, or may not be searched over.
        """
        return {name: _parameter(name, value) for name, value in self.space.items()}

    @property
    def num_trials(self) -> int:
        """``trials``, or what None stands for; never more than a grid has."""
        if self.sampler != "grid":
            return DEFAULT_TRIALS if self.trials is None else self.trials
        size = math.prod(len(p.values) for p in self.parameters.values() if isinstance(p, Choices))
        return size if self.trials is None else min(size, self.trials)


def _parameter(name: str, value: Any) -> Parameter:
    where = f"search.space.{name}"
    parts = name.split(".")
    if not all(parts):
        raise ConfigError(f"{where} is no dotted option, such as training.learning_rate")
    for fixed in FIXED:
        if parts[: fixed.count(".") + 1] == fixed.split("."):
            raise ConfigError(f"{where}: {fixed} is the same in every trial and cannot be searched over")
    if isinstance(value, Mapping):
        return _range(where, value)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{where} is {value!r}; it must be a list of values, or a range {{low: ..., high: ...}}")
    choices = Choices(tuple(value))
    # As JSON, for 1 and true are equal in Python.
    if len({json.dumps(label) for label in choices.labels}) < len(value):
        raise ConfigError(f"{where} lists a value twice")
    return choices


def _range(where: str, value: Mapping[str, Any]) -> Range:
    unknown = [key for key in value if key not in ("low", "high", "log", "step")]
    if unknown or not {"low", "high"} <= value.keys():
        raise ConfigError(
            f"{where} is {dict(value)!r}; a range has low and high, and may have log and step",
            hint="Values that are mappings themselves stand in a list: [{...}, {...}].",
        )
    low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
    for name, number in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{where}.{name} is {number!r}; it must be a number")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is {log!r}; it must be true or false")
    if not low < high:
        raise ConfigError(f"{where}: low is {low} and high {high}; low must be below high")
    if log and not low > 0:
        raise ConfigError(f"{where}.low is {low}; it must be greater than 0 where log is true")
    if step is not None and (log or not step > 0):
        raise ConfigError(f"{where}.step is {step}; it must be greater than 0, and has no meaning with log")
    made = Range(low, high, log, step)
    if made.is_whole and isinstance(step, float):
        raise ConfigError(f"{where}.step is {step}; a range of whole numbers takes whole steps")
    return made


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
