"""The loop: step, log, evaluate, choose the best, save, stop. Where each hook fires is drawn in ``hookspecs``.

What is due after a step is decided from the step number and the run's counters alone, so a run that was cut between
a step and its evaluation makes up for it when it resumes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecore.checkpoint import prune
from tunecore.errors import ConfigError, TrainingError, unknown_name
from tunecore.training.evaluate import EvaluationStopped
from tunecore.training.nonfinite import check_weights
from tunecore.training.result import TrainResult
from tunecore.training.run import Run, step_name
from tunecore.training.step import train_step
from tunecore.types import Tracker

if TYPE_CHECKING:
    from tunecore.data.loader import StepBatches

EVALUATIONS_PER_PRETRAINING = 10
_LAST = ("learning_rate",)
"""Metrics of which a logged row shows the last value; of others it shows the mean over its steps."""


def train(
    run: Run,
    loader: Iterable[StepBatches],
    *,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    save: Callable[[str], Path] | None = None,
    trackers: Sequence[Tracker] = (),
) -> TrainResult:
    """Train from ``run.step`` to ``run.total_steps``, or until early stopping or a signal.

    Args:
        run: made, and resumed where there was a checkpoint.
        loader: yields the StepBatches of this rank from ``run.step`` on.
        evaluate: measures the run's unit; called on every rank, with ``stop=run.stop`` handed on.
        save: commits a checkpoint of that name (``training.state.make_saver``); None saves nothing.
        trackers: get logged rows, on rank 0 only.

    Raises:
        TrainingError: a loss or weight is not finite, or the loader's steps are not the run's.
        CheckpointError: a checkpoint could not be written; earlier ones are untouched.
        ConfigError: the metric that chooses checkpoints is not measured.
    """
    begun = time.perf_counter()
    loop = _Loop(run, evaluate, save, Log(run, trackers if run.ranks.is_main else ()))
    run.unit.train()
    error: BaseException | None = None
    with run.stop:
        try:
            loop.log.start()
            run.hooks.tunecore_run_start(run=run)
            run.warn_untaken()
            interrupted = loop.work(loader)
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                run.hooks.tunecore_run_end(run=run, error=error)
            finally:
                loop.log.end(error)
    return TrainResult(
        steps=run.step,
        metrics={**loop.log.last, **{f"eval/{k}": v for k, v in loop.evaluated.items()}},
        best_metric=run.counters.best_metric,
        best_path=run.best_path,
        interrupted=interrupted,
        seconds=time.perf_counter() - begun,
        exit_code=run.stop.exit_code if interrupted else 0,
    )


class Log:
    """Averages metrics between logged rows and hands the rows to trackers."""

    def __init__(self, run: Run, trackers: Sequence[Tracker]) -> None:
        self._run = run
        self._trackers = trackers
        self._started: list[Tracker] = []
        self._seconds: dict[str, float] = {}
        self._tokens = 0.0
        self.last: dict[str, Any] = {}
        """The last row logged."""

    def start(self) -> None:
        """Start every tracker."""
        for tracker in self._trackers:
            tracker.start(self._run)
            self._started.append(tracker)

    def time(self, phase: str, seconds: float) -> None:
        """Count time to a phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def step(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; a row is due every ``tracking.every`` steps and at the end."""
        run, window = self._run, self._run.counters.window
        self._tokens += metrics["tokens"]
        for name, value in metrics.items():
            if name.startswith("time/"):
                self.time(name.removeprefix("time/"), value)
            elif name not in ("tokens", "skipped"):
                total, count = (0.0, 0) if name in _LAST else window.get(name, (0.0, 0))
                window[name] = (total + value, count + 1)
        if run.step % run.config.tracking.every == 0 or run.step == run.total_steps:
            self.flush()

    def flush(self) -> None:
        """Log the window's row and begin a new one."""
        run, window = self._run, self._run.counters.window
        row: dict[str, Any] = {name: total / count for name, (total, count) in window.items()}
        row["epoch"] = run.progress.epoch
        row["tokens"] = run.counters.tokens
        training = sum(v for k, v in self._seconds.items() if k not in ("evaluation", "checkpoint"))
        if training > 0:
            row["tokens_per_second"] = self._tokens / training
        if run.counters.skipped_steps:
            row["skipped_steps"] = run.counters.skipped_steps
        row.update({f"time/{phase}": seconds for phase, seconds in self._seconds.items()})
        window.clear()
        self._seconds, self._tokens, self.last = {}, 0.0, row
        self.row(row)

    def row(self, metrics: Mapping[str, Any]) -> None:
        """Log a row as it is."""
        for tracker in self._started:
            tracker.log(self._run.step, metrics)

    def end(self, error: BaseException | None) -> None:
        """End every tracker that was started; the first failure is raised after all had their turn, unless the run
        itself failed, whose error says more.
        """
        failure: Exception | None = None
        for tracker in self._started:
            try:
                tracker.end(self._run, error)
            except Exception as raised:
                failure = failure or raised
        if failure is not None and error is None:
            raise failure


class _Loop:
    def __init__(
        self,
        run: Run,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        save: Callable[[str], Path] | None,
        log: Log,
    ) -> None:
        config, head = run.config, run.config.head
        self.run, self.evaluate, self.save, self.log = run, evaluate, save, log
        tenth = math.ceil(run.total_steps / EVALUATIONS_PER_PRETRAINING)
        self.evaluate_every = config.evaluation.every or (tenth if head is None else run.steps_per_epoch)
        self.save_every = config.checkpoint.every or self.evaluate_every
        self.metric = config.evaluation.metric or _default_metric(run)
        self.evaluated: Mapping[str, Any] = {}

    def work(self, loader: Iterable[StepBatches]) -> bool:
        """Run to the end; returns whether a signal cut it short."""
        run, steps = self.run, iter(loader)
        try:
            while True:
                if run.stop.agreed() or not self.after_step():
                    self.checkpoint()
                    return run.step < run.total_steps or self.evaluation_due()
                if run.step >= run.total_steps or self.out_of_patience():
                    self.checkpoint()
                    return False
                begun = time.perf_counter()
                batches = _next(steps, run)
                self.log.time("data", time.perf_counter() - begun)
                self.log.step(train_step(run, batches))
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()  # ends the loader's worker processes now, not when the garbage is collected

    def after_step(self) -> bool:
        """Evaluate and save where that is due; False where a signal cut the evaluation short."""
        improved = False
        if self.evaluation_due():
            try:
                improved = self.measure()
            except EvaluationStopped:
                self.run.stop.agreed()  # the ranks that were not signalled learn what they are to exit with
                return False
        if self.run.step > 0 and (improved or self.run.step % self.save_every == 0):
            self.checkpoint()
        return True

    def evaluation_due(self) -> bool:
        run = self.run
        due = run.step > 0 and (run.step % self.evaluate_every == 0 or run.step >= run.total_steps)
        return self.evaluate is not None and due and run.counters.evaluated_at != run.step

    def measure(self) -> bool:
        """Evaluate; returns whether the metric is the best so far."""
        assert self.evaluate is not None
        run, counters = self.run, self.run.counters
        begun = time.perf_counter()
        results = self.evaluate()
        self.log.time("evaluation", time.perf_counter() - begun)
        counters.evaluated_at, self.evaluated = run.step, results
        improved = is_better(results, self.metric, counters.best_metric)
        if improved:
            counters.best_metric = float(results[self.metric.removeprefix("-")])
            counters.best_step, counters.evaluations_since_best = run.step, 0
        else:
            counters.evaluations_since_best += 1
        row = {f"eval/{name}": value for name, value in results.items()}
        self.log.row(row)
        run.observe(row)
        run.hooks.tunecore_evaluated(run=run, metrics=dict(results))  # a plugin may change what it is given
        return improved

    def out_of_patience(self) -> bool:
        patience = self.run.config.evaluation.patience
        return patience is not None and self.run.counters.evaluations_since_best >= patience

    def checkpoint(self) -> None:
        """Save, unless just this state is already saved, what is finite; tell plugins; prune."""
        run = self.run
        state = (run.step, run.counters.evaluated_at)
        if self.save is None or run.step == 0 or run.saved == state:
            return
        begun = time.perf_counter()
        check_weights(run)
        with run.stop.shielded():
            path = self.save(step_name(run.step))
            run.saved = state
        if run.ranks.is_main:
            run.hooks.tunecore_checkpoint_saved(run=run, path=path)
            best = run.best_path
            prune(run.output_dir, run.config.checkpoint.keep, () if best is None else (best,), run.step)
        self.log.time("checkpoint", time.perf_counter() - begun)


def is_better(results: Mapping[str, Any], metric: str, best: float | None) -> bool:
    """Whether ``results`` beat ``best`` by ``metric``, a leading "-" meaning lower is better; NaN never does.

    Raises:
        ConfigError: the metric is not among the results, or is not a number.
    """
    name = metric.removeprefix("-")
    numbers = {k: v for k, v in results.items() if isinstance(v, int | float)}
    if name not in numbers:
        raise ConfigError(
            f"evaluation.metric: {unknown_name('metric', name, numbers)}",
            hint='Set evaluation.metric to one of them, with a leading "-" where lower is better.',
        )
    value = float(numbers[name])
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if metric.startswith("-") else value > best


def _default_metric(run: Run) -> str:
    """The head's own metric, or the lowest loss."""
    for task in run.unit.tasks:
        metric = getattr(task.component, "default_metric", None)
        if metric:
            return str(metric)
    return "-loss"


def _next(steps: Iterator[StepBatches], run: Run) -> StepBatches:
    batches = next(steps, None)
    if batches is None or batches.step != run.step:
        found = "ended" if batches is None else f"gave step {batches.step}"
        raise TrainingError(f"the loader {found} where step {run.step} of {run.total_steps} is due")
    return batches
