"""Places inside a run that no hook comes by, and what may happen there."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tunecore.checkpoint
import tunecore.data.clean
import tunecore.data.loader
import tunecore.data.workers
import tunecore.runner
import tunecore.session
from tunecore.errors import DataError


class SignalAt:
    """Sends the signals, once, to the process that made it, when that (or a worker of it) comes by the place."""

    def __init__(self, place: str, numbers: Sequence[int]) -> None:
        self.place, self.numbers = place, tuple(numbers)
        self.process = 0
        self.done = False

    def __call__(self, place: str) -> None:
        self.process = self.process or os.getpid()
        if place == self.place and not self.done:
            self.done = True
            for number in self.numbers:
                os.kill(self.process, number)


class WaitAt:
    """Stops, once, at the place: makes the file ``gate`` there and waits until it is taken away."""

    def __init__(self, place: str, gate: Path) -> None:
        self.place, self.gate, self.done = place, gate, False

    def __call__(self, place: str) -> None:
        if place == self.place and not self.done:
            self.done = True
            self.gate.touch()
            while self.gate.exists():
                time.sleep(0.01)


class WorkerAt:
    """Kills, crashes, hangs or fails the data worker that comes by the place."""

    def __init__(self, place: str, how: str) -> None:
        self.place, self.how, self.run = place, how, 0

    def __call__(self, place: str) -> None:
        self.run = self.run or os.getpid()
        if place != self.place or os.getpid() == self.run:
            return
        if self.how == "hang":
            time.sleep(600)
        if self.how == "raise":
            raise DataError("text.jsonl:3: a bad row")
        if self.how == "crash":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGSTOP if self.how == "stop" else signal.SIGKILL)


def come_by(act: Callable[[str], None]) -> None:
    """Have ``act`` called with the names of these places: "cleaning", "building", "evaluating", "saving NAME",
    "workers PID PID ..." (which were just started), "loading STEP" (where the batches are made) and "finishing".
    """
    act("command")

    def at(owner: Any, name: str, place: Callable[..., str | None]) -> None:
        function = getattr(owner, name)

        def passing(*arguments: Any, **options: Any) -> Any:
            where = place(*arguments)
            if where is not None:
                act(where)
            return function(*arguments, **options)

        setattr(owner, name, passing)

    at(tunecore.data.clean.Cleaner, "clean", lambda *_: "cleaning")
    at(tunecore.session, "build_model", lambda *_: "building")
    at(tunecore.session.Session, "write", lambda *_: "writing a model")
    at(tunecore.data.loader.StepLoader, "step", lambda _, step: f"loading {step}")
    at(tunecore.data.workers._Watch, "start", lambda _, workers: f"workers {' '.join(str(w.pid) for w in workers)}")
    at(tunecore.runner, "with_test", lambda *_: "finishing")
    at(tunecore.checkpoint, "sync", _saving)
    batches_of = tunecore.runner.eval_batches

    def eval_batches(*arguments: Any, **options: Any) -> Any:
        for batch in batches_of(*arguments, **options):
            act("evaluating")
            yield batch

    tunecore.runner.eval_batches = eval_batches


def _saving(path: Any) -> str | None:
    """Of a file in ``.tmp-step-3-PID``: "saving step-3"."""
    stage = path.parent.name
    return f"saving {stage.removeprefix('.tmp-').rpartition('-')[0]}" if stage.startswith(".tmp-") else None
