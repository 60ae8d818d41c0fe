"""An adaptive learning rate: it falls when a metric stands still, and when a loss jumps.

The rule of ``ReduceLROnPlateau`` (torch, Keras) on top of any schedule: after ``patience`` readings without an
improvement the rate of the whole run is multiplied by ``factor``, never below ``min_scale`` of the schedule's. A loss
far above its running mean (spikes are common at high rates: Chowdhery et al. 2022, PaLM, arXiv:2204.02311) lowers it at
once.

A reading is the mean of a training metric over ``window`` steps, or the result of an evaluation. Every rank sees the
same numbers, and all that is remembered is in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PreTrainedModel

from tunecore.errors import ConfigError, unknown_name
from tunecore.types import Family, ParamPlan, Progress

NAME = "adaptive_lr"
EVALUATION = "eval/"
_MEMORY = 0.98
"""Weight of the past in the running mean of the loss that spikes are measured by: about 50 steps."""
_SETTLING = 20
"""Steps before a loss can be a spike: the mean must mean something."""
_TURNS = 20
"""Where views take turns, a metric of one view may be this many times longer in coming."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveLROptions:
    """Options of adaptive_lr."""

    metric: str = "-loss"
    """What is watched: a training metric (loss, loss/<name>, accuracy/<name>) or eval/<name>; a leading "-" means lower
    is better."""
    window: int = 50
    """Steps of training one reading is the mean of; evaluations are a reading each."""
    factor: float = 0.5
    """What the rate is multiplied by when it falls."""
    patience: int = 3
    """Readings without an improvement until the rate falls."""
    threshold: float = 1e-3
    """Relative change that counts as an improvement."""
    cooldown: int = 0
    """Readings after a fall that are not counted against the metric."""
    min_scale: float = 0.01
    """The rate never falls below this share of the schedule's."""
    spike: float | None = None
    """Let the rate fall at once when the loss of a step (``metric`` where that is one, else ``loss``) is this many
    times its running mean, or not finite (with training.on_nonfinite: skip); None never does."""

    def __post_init__(self) -> None:
        if not self.metric.removeprefix("-"):
            raise ConfigError(f"{NAME}.metric is {self.metric!r}; it must name a metric")
        if self.window < 1 or self.patience < 1 or self.cooldown < 0 or self.threshold < 0:
            raise ConfigError(f"{NAME}: window and patience must be at least 1, cooldown and threshold not negative")
        if not 0 < self.factor < 1:
            raise ConfigError(f"{NAME}.factor is {self.factor}; it must be between 0 and 1")
        if not 0 < self.min_scale <= 1:
            raise ConfigError(f"{NAME}.min_scale is {self.min_scale}; it must be above 0 and at most 1")
        if self.spike is not None and not self.spike > 1:
            raise ConfigError(f"{NAME}.spike is {self.spike}; it must be above 1")


@dataclass
class _Memory:
    """All that is remembered; JSON."""

    scale: float = 1.0
    best: float | None = None
    bad: int = 0
    cooling: int = 0
    total: float = 0.0
    count: int = 0
    mean: float = 0.0
    steps: int = 0
    quiet: int = 0
    missing: int = 0


class AdaptiveLR:
    """The strategy ``adaptive_lr``."""

    name = NAME

    def __init__(self, options: AdaptiveLROptions) -> None:
        self.options = options
        self._metric, self._falling = options.metric.removeprefix("-"), options.metric.startswith("-")
        is_loss = self._falling and not self._metric.startswith(EVALUATION)
        self._jumping = self._metric if is_loss else "loss"
        self._memory = _Memory()

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        return {}

    def multiplier(self, progress: Progress) -> float:
        """The factor of the schedule's rate at present."""
        return self._memory.scale

    def observe(self, metrics: Mapping[str, Any], progress: Progress) -> None:
        """Take the metrics of a step or of an evaluation; a step without the metric (another view's) is no reading.

        Raises:
            ConfigError: an evaluation does not measure the metric, or no step of a window does.
        """
        if any(name.startswith(EVALUATION) for name in metrics):
            if self._metric.startswith(EVALUATION):
                self._read(_number(self._metric, metrics))
            return
        loss = metrics.get(self._jumping)
        if loss is not None and self.options.spike is not None:
            self._look_for_spike(float(loss), self.options.spike)
        if self._metric.startswith(EVALUATION):
            return
        memory, value = self._memory, metrics.get(self._metric)
        memory.missing = memory.missing + 1 if value is None else 0
        turns = _TURNS if any(name.startswith("view/") for name in metrics) else 1
        if memory.missing > turns * self.options.window:
            raise ConfigError(f"{NAME}.metric: {unknown_name('metric', self._metric, metrics)}")
        if value is None or not math.isfinite(value):
            return
        memory.total, memory.count = memory.total + float(value), memory.count + 1
        if memory.count == self.options.window:
            reading, memory.total, memory.count = memory.total / memory.count, 0.0, 0
            self._read(reading)

    def _read(self, reading: float) -> None:
        memory, options = self._memory, self.options
        if self._improves(reading):
            memory.best, memory.bad = reading, 0
        elif memory.cooling == 0:
            memory.bad += 1
        memory.cooling = max(0, memory.cooling - 1)
        if memory.bad >= options.patience:
            self._fall()

    def _improves(self, reading: float) -> bool:
        best = self._memory.best
        if not math.isfinite(reading):
            return False
        if best is None:
            return True
        margin = self.options.threshold * abs(best)
        return reading < best - margin if self._falling else reading > best + margin

    def _look_for_spike(self, loss: float, times: float) -> None:
        memory = self._memory
        memory.quiet = max(0, memory.quiet - 1)
        if not math.isfinite(loss) or (memory.steps >= _SETTLING and loss > times * memory.mean):
            if memory.quiet == 0:  # the steps after a jump belong to it
                self._fall()
                memory.quiet = _SETTLING
            return
        memory.steps += 1
        share = max(1.0 - _MEMORY, 1.0 / memory.steps)
        memory.mean += share * (loss - memory.mean)

    def _fall(self) -> None:
        memory, options = self._memory, self.options
        memory.scale = max(options.min_scale, memory.scale * options.factor)
        memory.bad, memory.cooling = 0, options.cooldown

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory = _Memory(**{field.name: state[field.name] for field in fields(_Memory)})


def _number(name: str, metrics: Mapping[str, Any]) -> float:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if name not in numbers:
        raise ConfigError(f"{NAME}.metric: {unknown_name('metric', name, numbers)}")
    return float(numbers[name])
