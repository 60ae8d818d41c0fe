"""THE CONTRACT: every hook a plugin can implement, and where each fires.

A plugin is a module or object with functions marked ``@tunecore.hookimpl``, named in an entry point of the group
``tunecore.plugins``. The built-ins use the same hooks (``tunecore/builtin.py``)::

    load plugins
      tunecore_register_objectives, _heads, _strategies, _optimizers, _schedules, _sources, _families, _trackers
    config = tunecore_configure(config)                        # each plugin in turn
    build the model, objectives or head, strategies
    tunecore_model_built(model, config)
    resume from the newest good checkpoint, if there is one
    tunecore_run_start(run)
    while run.step < total_steps:
        for batch in the step's micro-batches:
            tunecore_batch_ready(run, batch)
            forward, losses, backward
        tunecore_before_optimizer_step(run)                    # gradients are whole (all ranks), not yet clipped
        clip, optimizer step
        tunecore_step_end(run, metrics)
        every evaluation.every steps:  evaluate, tunecore_evaluated(run, metrics)
        every checkpoint.every steps:  save, tunecore_checkpoint_saved(run, path)
    tunecore_run_end(run, error)                               # always, error is None after success

Hooks take any subset of the arguments below, by name. Arguments may be added in a later version, never removed
without a deprecation over two minor versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunecore.config import RunConfig
    from tunecore.training.run import Run
    from tunecore.types import PackedBatch

PROJECT = "tunecore"
HOOKSPEC_VERSION = (1, 0)
"""A plugin may state the range it was written for: ``tunecore_api = ">=1,<2"``."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]
"""``register(name, factory, Options)``: ``Options`` is a frozen dataclass whose fields join the run's config and
its JSON Schema; ``factory(options)`` makes the component. A taken name is an error that names both owners."""


@hookspec
def tunecore_register_objectives(register: Register) -> None:
    """Register pretraining objectives: ``factory(options) -> tunecore.types.Objective``."""


@hookspec
def tunecore_register_heads(register: Register) -> None:
    """Register task heads: ``factory(options) -> tunecore.types.Head``."""


@hookspec
def tunecore_register_strategies(register: Register) -> None:
    """Register fine-tuning strategies: ``factory(options) -> tunecore.types.Strategy``."""


@hookspec
def tunecore_register_optimizers(register: Register) -> None:
    """Register optimizers: ``factory(options) -> (param_groups -> torch.optim.Optimizer)``; parameters are fp32."""


@hookspec
def tunecore_register_schedules(register: Register) -> None:
    """Register learning-rate schedules: ``factory(options) -> (step, total_steps -> multiplier)``."""


@hookspec
def tunecore_register_sources(register: Register) -> None:
    """Register file readers: ``factory(options) -> tunecore.types.Source``."""


@hookspec
def tunecore_register_families(register: Register) -> None:
    """Register model families by transformers ``model_type``: ``factory(options) -> tunecore.types.Family``."""


@hookspec
def tunecore_register_trackers(register: Register) -> None:
    """Register metric trackers: ``factory(options) -> tunecore.types.Tracker``."""


@hookspec
def tunecore_configure(config: RunConfig) -> RunConfig | None:
    """Look at the run's configuration, or return a changed one (``dataclasses.replace``)."""


@hookspec
def tunecore_model_built(model: PreTrainedModel, config: RunConfig) -> None:
    """The model, its head and the strategies are in place; the optimizer is not yet made."""


@hookspec
def tunecore_run_start(run: Run) -> None:
    """Called once, after a checkpoint was resumed. ``run.track(name, obj)`` here keeps ``obj.state_dict()``
    in every checkpoint and gives it back on resume.
    """


@hookspec
def tunecore_batch_ready(run: Run, batch: PackedBatch) -> None:
    """A micro-batch of the step is about to go through the model."""


@hookspec
def tunecore_before_optimizer_step(run: Run) -> None:
    """Gradients are complete (accumulated, summed over ranks) and finite, not yet clipped."""


@hookspec
def tunecore_step_end(run: Run, metrics: Mapping[str, Any]) -> None:
    """An optimizer step is done."""


@hookspec
def tunecore_evaluated(run: Run, metrics: Mapping[str, Any]) -> None:
    """An evaluation is done; metrics are of all ranks."""


@hookspec
def tunecore_checkpoint_saved(run: Run, path: Path) -> None:
    """A checkpoint is committed and durable at ``path`` (rank 0 only)."""


@hookspec
def tunecore_run_end(run: Run, error: BaseException | None) -> None:
    """The run is over; ``error`` is what ended it early, or None."""
