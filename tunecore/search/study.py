"""The trials of a search, shared by all processes that run it, kept in optuna's journal in the search's folder.

A process takes a trial by a lock that the kernel releases when the process ends, however it ends. So a running trial
whose lock is free was left by a process that is gone: the next one takes it over where its last checkpoint stands, with
the same parameters and seed, and no trial is run twice. Asking and telling happen one process at a time.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecore.checkpoint import newest_good
from tunecore.config_search import SearchConfig
from tunecore.errors import CheckpointError, ConfigError
from tunecore.locks import FileLock
from tunecore.search.result import COMPLETE, FAILED, PRUNED, RUNNING, Trial
from tunecore.search.sampling import make_sampler, suggest
from tunecore.search.space import trial_folder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
LOCKS = "locks"
MOST_DEATHS = 5
"""A trial whose process died this often without a new checkpoint would kill the next one too: it is failed."""
_STATES = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
_STEPS, _CLAIMS, _REASON = "steps of evaluations", "checkpoints at claims", "reason"


class TrialStudy:
    """Asks for trials and keeps their results.

    Args:
        folder: of the search.
        search: its options.
        seed: fixes what is tried.
        lower_is_better: of the metric.

    Raises:
        ConfigError: optuna is not installed.
        CheckpointError: the journal is damaged.
    """

    def __init__(self, folder: Path, search: SearchConfig, seed: int, *, lower_is_better: bool) -> None:
        self.folder, self.search, self.lower_is_better = folder, search, lower_is_better
        self._optuna = import_optuna()
        self._lock = FileLock(folder / LOCKS / "study")
        self._claimed: FileLock | None = None
        self._parameters = search.parameters
        self._study = self._open(seed)

    def _open(self, seed: int) -> Any:
        optuna, path = self._optuna, self.folder / JOURNAL
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners = optuna.pruners
        median = pruners.MedianPruner(n_startup_trials=self.search.startup_trials)
        with self.locked():
            lock = _AppendLock(path, FileLock(self.folder / LOCKS / "journal"))
            try:
                storage = optuna.storages.JournalStorage(
                    optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
                )
                return optuna.create_study(
                    storage=storage, study_name="search", load_if_exists=True,
                    direction="minimize" if self.lower_is_better else "maximize",
                    sampler=make_sampler(optuna, self.search, seed),
                    pruner=pruners.NopPruner() if self.search.pruner == "none" else median,
                )  # fmt: skip
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{str(path)!r} cannot be read: {error}", hint="Restore it, or start the search in another folder."
                ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts, no other process asks, tells or ends the search."""
        with self._lock.held():
            yield

    def claim(self) -> Trial | None:
        """Take a trial to run: one that was left, else a new one. None where none is left to take.

        Call it inside :meth:`locked`.
        """
        for trial in self._trials("RUNNING"):
            if self._take(trial.number):
                if self._is_deadly(trial):
                    self.fail(trial.number, f"its process died {MOST_DEATHS} times at the same step")
                    continue
                return self._begun(trial.number)
        if len(self._trials()) >= self.search.num_trials:
            return None
        number = self._study.ask().number
        assert self._take(number), "a new trial is no one else's"
        return self._begun(number)

    def _take(self, number: int) -> bool:
        lock = FileLock(self.folder / LOCKS / f"trial-{number}")
        if not lock.acquire(wait=False):
            return False
        self._claimed = lock
        return True

    def _is_deadly(self, trial: FrozenTrial) -> bool:
        newest, _ = newest_good(trial_folder(self.folder, trial.number))
        claims = [*trial.user_attrs.get(_CLAIMS, []), "none" if newest is None else newest.name]
        self._handle(trial.number).set_user_attr(_CLAIMS, claims)
        return len(claims) >= MOST_DEATHS and len(set(claims[-MOST_DEATHS:])) == 1

    def _begun(self, number: int) -> Trial:
        """A trial with all its parameters; those it had when its process died stay as they are."""
        handle = self._handle(number)
        for name, parameter in self._parameters.items():
            suggest(handle, name, parameter)
        return self.trial(number)

    def _handle(self, number: int) -> Any:
        """Optuna's handle of a running trial, as ``ask`` gives it."""
        return self._optuna.trial.Trial(self._study, self._frozen(number)._trial_id)

    def report(self, number: int, step: int, epoch: float, value: float) -> bool:
        """Keep an evaluation after ``epoch`` passes over the data; returns whether the trial is not worth more time.

        Points are compared where as much data was seen, to a thousandth of a pass: steps of trials with other batch
        sizes are worth more or less. One that is reported again (by a resumed trial) counts once.
        """
        handle = self._handle(number)
        place = round(1000 * epoch)
        if place not in self._frozen(number).intermediate_values:
            # The step first: a report that follows it, or not, is found by its place.
            handle.set_user_attr(_STEPS, {**handle.user_attrs.get(_STEPS, {}), str(place): step})
            handle.report(value, place)
        return bool(handle.should_prune())

    def is_hopeless(self, number: int) -> bool:
        """Whether a trial was to be pruned at its last evaluation when its process died."""
        frozen = self._frozen(number)
        return bool(frozen.intermediate_values) and bool(self._handle(number).should_prune())

    def complete(self, number: int, value: float) -> None:
        """The trial ended with this metric."""
        self._tell(number, value, "COMPLETE")

    def prune(self, number: int) -> None:
        """The trial was ended early."""
        self._tell(number, None, "PRUNED")

    def fail(self, number: int, reason: str) -> None:
        """The trial cannot be run to its end."""
        self._handle(number).set_user_attr(_REASON, reason)
        self._tell(number, None, "FAIL")

    def _tell(self, number: int, value: float | None, state: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(number, value, state=self._optuna.trial.TrialState[state])
        self.let_go()

    def let_go(self, *, orderly: bool = False) -> None:
        """Give up the claimed trial; ``orderly``: its process was asked to stop and did not die."""
        if self._claimed is None:
            return
        if orderly:
            number = int(self._claimed.path.name.removeprefix("trial-"))
            self._handle(number).set_user_attr(_CLAIMS, [])
        self._claimed.release()
        self._claimed = None

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return [self._shown(trial) for trial in self._trials()]

    def trial(self, number: int) -> Trial:
        """One trial."""
        return self._shown(self._frozen(number))

    def best(self) -> Trial | None:
        """The complete trial with the best metric, the first of equals."""
        sign = 1.0 if self.lower_is_better else -1.0
        complete = [t for t in self.trials() if t.state == COMPLETE and t.value is not None]
        return min(complete, key=lambda t: (sign * (t.value or 0.0), t.number), default=None)

    def is_over(self) -> bool:
        """Whether every trial has ended."""
        trials = self._trials()
        return len(trials) >= self.search.num_trials and all(t.state.is_finished() for t in trials)

    def _trials(self, *states: str) -> list[FrozenTrial]:
        wanted = tuple(self._optuna.trial.TrialState[state] for state in states) or None
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=wanted)
        return sorted(found, key=lambda t: t.number)

    def _frozen(self, number: int) -> FrozenTrial:
        return next(trial for trial in self._trials() if trial.number == number)

    def _shown(self, trial: FrozenTrial) -> Trial:
        steps = trial.user_attrs.get(_STEPS, {})
        curve = tuple((steps[str(place)], value) for place, value in sorted(trial.intermediate_values.items()))
        params = {name: trial.params[name] for name in self._parameters if name in trial.params}
        state = _STATES.get(trial.state.name, RUNNING)
        value = None if trial.values is None else trial.values[0]
        return Trial(trial.number, params, state, value, curve, trial.user_attrs.get(_REASON))


class _AppendLock:
    """The lock optuna takes around each write, as one that a killed process does not leave behind."""

    def __init__(self, journal: Path, lock: FileLock) -> None:
        self._journal, self._lock = journal, lock

    def acquire(self) -> bool:
        self._lock.acquire()
        _heal(self._journal)
        return True

    def release(self) -> None:
        self._lock.release()


def _heal(journal: Path) -> None:
    """Cut off a line that a killed process did not finish: with the next one behind it, it could not be read."""
    with open(journal, "r+b") as file:
        if file.seek(0, 2) == 0:
            return
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def import_optuna() -> Any:
    """The optuna package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError(
            "a search needs optuna, which is not installed", hint="Run: pip install 'tunecore[search]'"
        ) from None
