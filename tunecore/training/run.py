"""A run: everything that changes while training, and what plugins are shown of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from tunecore.config import RunConfig
from tunecore.errors import ConfigError, PluginError
from tunecore.registry import Registry, name_and_options
from tunecore.training.distributed import Ranks
from tunecore.training.optimizer import MasterOptimizer
from tunecore.training.plans import combine_plans, combined_multiplier, observe
from tunecore.training.precision import weight_dtype
from tunecore.training.schedule import Schedule, with_warmup
from tunecore.training.signals import StopSignal
from tunecore.training.unit import TrainUnit
from tunecore.types import Family, Progress, Strategy


class Stateful(Protocol):
    """What :meth:`Run.track` takes; the state is JSON."""

    def state_dict(self) -> dict[str, Any]:
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ...


@dataclass
class Counters:
    """Where the run stands beyond its step; all of it is in every checkpoint."""

    tokens: int = 0
    """Useful tokens trained on so far, over all ranks."""
    skipped_steps: int = 0
    """Steps left out because a loss or gradient was not finite, those undone by going back included."""
    evaluated_at: int = 0
    """Step of the last finished evaluation."""
    best_metric: float | None = None
    """Best value of the metric that chooses checkpoints."""
    best_step: int | None = None
    """Step of that evaluation."""
    evaluations_since_best: int = 0
    """For early stopping."""
    window: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Metric -> (sum, count) since the last logged row, so that a resumed run logs what an uninterrupted one does."""


@dataclass
class Run:
    """One run, as hooks see it. Make it with :func:`make_run`.

    Hooks may read everything, and change gradients in place (``run.optimizer.gradients()``) in
    ``tunecore_before_optimizer_step``.
    """

    config: RunConfig
    unit: TrainUnit
    """The model and its tasks."""
    tokenizer: Any
    registry: Registry
    hooks: Any
    strategies: tuple[Strategy, ...]
    optimizer: MasterOptimizer
    schedule: Schedule
    """(step, total_steps) -> multiplier of the peak rate, warm-up included."""
    total_steps: int
    steps_per_epoch: int
    """Of one pass over the data, at ``training.batch_size``."""
    epoch_at: Callable[[int], float]
    """Step -> passes over the data done when it begins."""
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    """Optimizer steps done."""
    counters: Counters = field(default_factory=Counters)
    stop: StopSignal = field(default_factory=StopSignal)
    """Whether the run was asked to stop."""
    saved: tuple[int, int] | None = None
    """(step, step of the last evaluation) of the newest checkpoint."""
    tracked: dict[str, Stateful] = field(default_factory=dict)
    """Plugins' objects whose state is in every checkpoint."""
    left_out_in_a_row: int = 0
    """Steps just before this one that were left out because something was not finite."""
    untaken: dict[str, dict[str, Any]] = field(default_factory=dict)
    """States of a resumed checkpoint whose objects are not yet tracked."""

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self.unit.model

    @property
    def family(self) -> Family:
        """What differs for the model's ``model_type``."""
        return self.unit.family

    @property
    def seed(self) -> int:
        """``training.seed``."""
        return self.config.training.seed

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def rank(self) -> int:
        """This process among the ``world_size``; rank 0 writes."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """How many processes share every step."""
        return self.ranks.world_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.ranks.device

    @property
    def alternates(self) -> bool:
        """Whether steps take turns among several views."""
        return self.config.training.views == "alternate" and len(self.unit.view_weights) > 1

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss name -> its weight in a training step; relative to its view where views take turns, since the view's
        own weight is then the share of steps it gets.
        """
        return self.unit.weights_within_views if self.alternates else self.unit.weights

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(self.step, self.total_steps, self.epoch_at(self.step), self.epoch_at(self.total_steps))

    @property
    def best_path(self) -> Path | None:
        """Checkpoint of the best evaluation so far, where it was saved."""
        step = self.counters.best_step
        path = None if step is None else self.output_dir / step_name(step)
        return path if path is not None and path.is_dir() else None

    def track(self, name: str, obj: Stateful) -> None:
        """Keep ``obj.state_dict()`` in every checkpoint, and give ``obj`` its state back now if the run was resumed.

        Raises:
            PluginError: the name is taken, or ``obj`` lacks the two methods.
        """
        if name in self.tracked:
            raise PluginError(f"run.track: the name {name!r} is taken")
        if not callable(getattr(obj, "state_dict", None)) or not callable(getattr(obj, "load_state_dict", None)):
            raise PluginError(
                f"run.track({name!r}): {type(obj).__name__} needs state_dict() and load_state_dict(state)"
            )
        self.tracked[name] = obj
        if name in self.untaken:
            obj.load_state_dict(self.untaken.pop(name))

    def replan(self) -> bool:
        """Ask the strategies for this step's plans and follow them; returns whether anything changed."""
        plans = combine_plans(self.optimizer.base_plans, self.strategies, self.progress)
        return self.optimizer.apply(plans)

    @property
    def multiplier(self) -> float:
        """What the peak rate is multiplied by in the coming step: by the schedule, and by the strategies."""
        return self.schedule(self.step, self.total_steps) * combined_multiplier(self.strategies, self.progress)

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """Show the strategies what was measured, the same on every rank, and follow the plans they then have."""
        observe(self.strategies, metrics, self.progress)
        self.replan()

    def warn_untaken(self) -> None:
        """Say which states of the checkpoint no plugin has taken back."""
        for name in self.untaken:
            warnings.warn(
                f"the checkpoint holds a state {name!r} that no loaded plugin tracks; it is dropped", stacklevel=2
            )
        self.untaken.clear()


def step_name(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"step-{step}"


def default_learning_rate(config: RunConfig, width: int) -> float:
    """The peak rate: as configured, else by origin and by the hidden width of a new model."""
    if config.training.learning_rate is not None:
        return config.training.learning_rate
    if config.model.checkpoint is not None:
        return 5e-5
    return 1e-3 if width < 512 else 5e-4 if width < 768 else 1e-4


def make_run(
    config: RunConfig,
    unit: TrainUnit,
    *,
    tokenizer: Any,
    registry: Registry,
    hooks: Any,
    total_steps: int,
    steps_per_epoch: int,
    strategies: Sequence[Strategy] = (),
    ranks: Ranks | None = None,
    epoch_at: Callable[[int], float] | None = None,
) -> Run:
    """Make a run of a model whose strategies have prepared it: device, precision, optimizer, schedule, first plans.

    Args:
        config: the run's configuration.
        unit: model and tasks, weights in fp32; moved to the rank's device and cast to the run's precision.
        tokenizer: handed to plugins and checkpoints.
        registry: where optimizer and schedule are looked up.
        hooks: calls plugins: ``hooks.tunecore_step_end(run=..., metrics=...)``.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: steps of one pass over the data.
        strategies: already prepared.
        ranks: this process among its peers; None is a single process on the CPU.
        epoch_at: step -> passes over the data done when it begins, where steps differ; None is by ``steps_per_epoch``.

    Raises:
        ConfigError: no steps, an unknown optimizer or schedule, or strategies that contradict each other.
    """
    if total_steps < 1 or steps_per_epoch < 1:
        raise ConfigError(f"the run has {total_steps} steps of {steps_per_epoch} an epoch; both must be at least 1")
    ranks = ranks or Ranks()
    training = config.training
    unit.to(ranks.device)
    optimizer = MasterOptimizer(
        unit.parameters_by_name(),
        registry.create("optimizer", *name_and_options(training.optimizer, "training.optimizer")),
        learning_rate=default_learning_rate(config, int(getattr(unit.model.config, "hidden_size", 0))),
        weight_decay=training.weight_decay,
        dtype=weight_dtype(training.precision, ranks.device),
    )
    schedule = registry.create("schedule", *name_and_options(training.schedule, "training.schedule"))
    run = Run(
        config=config, unit=unit, tokenizer=tokenizer, registry=registry, hooks=hooks, strategies=tuple(strategies),
        optimizer=optimizer, schedule=with_warmup(schedule, training.warmup), total_steps=total_steps,
        steps_per_epoch=steps_per_epoch, epoch_at=epoch_at or (lambda step: step / steps_per_epoch), ranks=ranks,
        stop=StopSignal(ranks),
    )  # fmt: skip
    run.replan()
    return run
