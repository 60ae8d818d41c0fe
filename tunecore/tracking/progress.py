"""Progress on the terminal: a live line where there is one, else one line a logged row.

Shown: loss (and each named loss), useful tokens a second, where the time went by phase, the time left, and
evaluation results as they come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tunecore.tracking.values import number

PHASE_PREFIX = "time/"
EVAL_PREFIX = "eval/"


@dataclass(frozen=True)
class ProgressOptions:
    """Options of the ``progress`` tracker."""

    live: bool | None = None
    """A line that redraws itself; None does so where the output is a terminal."""
    stderr: bool = True
    """Write to standard error, so that what a command prints can be piped."""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m 05s, 2h 07m, 3d 04h."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86400}d {total % 86400 // 3600:02d}h"


def short(value: float) -> str:
    """A metric in few characters: four digits that matter; nan and inf as they are."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def phase_shares(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Share of time by phase, from the seconds under ``time/...``; {} where none were measured."""
    seconds = {
        name.removeprefix(PHASE_PREFIX): value
        for name, raw in metrics.items()
        if name.startswith(PHASE_PREFIX) and (value := number(raw)) is not None and math.isfinite(value) and value >= 0
    }
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()} if total > 0 else {}


def training_text(metrics: Mapping[str, Any]) -> str:
    """The training part of a row: losses, accuracy, learning rate, tokens/s and phases; "" where it has none."""
    parts = []
    named = {k.removeprefix("loss/"): number(v) for k, v in metrics.items() if k.startswith("loss/")}
    loss = number(metrics.get("loss"))
    if loss is not None:
        parts.append(f"loss {short(loss)}")
    if len(named) > 1 or (named and loss is None):
        parts.append("(" + ", ".join(f"{k} {short(v)}" for k, v in named.items() if v is not None) + ")")
    for key, label in (("learning_rate", "lr"), ("grad_norm", "grad")):
        value = number(metrics.get(key))
        if value is not None:
            parts.append(f"{label} {short(value)}")
    rate = number(metrics.get("tokens_per_second"))
    if rate is not None:
        parts.append(f"{rate:,.0f} tok/s")
    shares = phase_shares(metrics)
    if shares:
        order = sorted(shares.items(), key=lambda item: -item[1])
        parts.append(" ".join(f"{name} {share:.0%}" for name, share in order if share >= 0.005))
    return "  ".join(parts)


def evaluation_text(metrics: Mapping[str, Any]) -> str:
    """The evaluation part of a row: every scalar under ``eval/``; "" where it has none."""
    scalars = {k.removeprefix(EVAL_PREFIX): number(v) for k, v in metrics.items() if k.startswith(EVAL_PREFIX)}
    return "  ".join(f"{name} {short(value)}" for name, value in scalars.items() if value is not None)


_OPEN: list[Progress] = []
"""The live line of the run that is trained in this process, if there is one: a second one would write over it."""


def counted(amounts: Iterator[int], total: int, *, what: str) -> Iterator[int]:
    """Hand ``amounts`` on and show how many of ``total`` they make together, on standard error where it is a terminal.

    While a run's live line is open, the count is a line beneath it.
    """
    console = Console(stderr=True)
    if not _OPEN and not console.is_terminal:
        yield from amounts
        return
    columns = (BarColumn(bar_width=24), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"))
    own = None if _OPEN else Progress(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True)
    live = own or _OPEN[-1]
    task = live.add_task("", total=total, text=what)
    try:
        if own is not None:
            own.start()
        for amount in amounts:
            live.advance(task, amount)
            yield amount
    finally:
        live.remove_task(task)
        if own is not None:
            own.stop()


class ProgressTracker:
    """Show a run on the terminal."""

    def __init__(self, options: ProgressOptions | None = None, *, console: Console | None = None) -> None:
        self.options = options or ProgressOptions()
        # soft_wrap keeps a plain line whole in a log file, whatever width rich believes in.
        self.console = console or Console(stderr=self.options.stderr, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._first_step = 0
        self._begun = 0.0

    def start(self, run: Any) -> None:
        """Note where the run starts, for the time left, and open the live line where there is a terminal."""
        self._total, self._first_step = int(run.total_steps), int(run.step)
        self._begun = time.monotonic()
        resumed = f", resumed at step {self._first_step}" if self._first_step else ""
        self._say(f"{self._total:,} steps into {run.output_dir}{resumed}")
        live = self.console.is_terminal if self.options.live is None else self.options.live
        if live and self._total > self._first_step:
            columns = (BarColumn(bar_width=24), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"))
            text = TextColumn("{task.fields[text]}", markup=False)
            self._live = Progress(*columns, text, console=self.console, transient=True)
            self._task = self._live.add_task("", total=self._total, completed=self._first_step, text="")
            self._live.start()
            _OPEN.append(self._live)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show one row."""
        training, evaluation = training_text(metrics), evaluation_text(metrics)
        if training:
            text = f"{training}  eta {self._time_left(step)}"
            if self._live is not None:
                self._live.update(self._task, completed=step, text=text)
            else:
                share = f" {step / self._total:4.0%}" if self._total else ""
                self._say(f"step {step:>{len(str(self._total))}}/{self._total}{share}  {text}")
        if evaluation:
            self._say(f"step {step}  evaluation: {evaluation}")

    def end(self, run: Any, error: BaseException | None) -> None:
        """Close the live line and say how the run ended."""
        if self._live is not None:
            self._live.stop()
            _OPEN.remove(self._live)
            self._live = None
        took = duration(time.monotonic() - self._begun)
        if error is None:
            done = "done" if int(run.step) >= self._total else "stopped"
            self._say(f"{done} at step {int(run.step):,} after {took}")
        else:
            self._say(f"ended at step {int(run.step):,} after {took} by {type(error).__name__}")

    def _time_left(self, step: int) -> str:
        done = step - self._first_step
        if done <= 0:
            return "?"
        return duration((time.monotonic() - self._begun) / done * max(self._total - step, 0))

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
