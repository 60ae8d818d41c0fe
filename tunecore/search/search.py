"""A search from its first trial to its final model. Any number of processes may run the same one at the same time.

claim a trial -> train it as a run of its own -> keep its metric -> drop its checkpoints unless it is the best
-> ... -> when all have ended: the best one's model is ``final``, its options are ``best.yaml``, and it is tested
"""

from __future__ import annotations

import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunecore.config import ModelConfig, RunConfig
from tunecore.config_diff import NEUTRAL_KEYS
from tunecore.config_io import check_components, dump_config
from tunecore.durable import write_text
from tunecore.errors import ConfigError, TrainingError
from tunecore.hookspecs import hookimpl
from tunecore.inputs import evaluation_rows, look_at_data
from tunecore.outcome import with_test
from tunecore.plugins import Plugins
from tunecore.run_folder import (
    FINAL,
    claim,
    copy_model,
    model_digest,
    record_config,
    record_data,
    write_json,
)
from tunecore.runner import fit, main_first, measure, prepare_tokenizer
from tunecore.saved_tasks import with_known_length
from tunecore.search.result import FAILED, RUNNING, SearchResult, describe
from tunecore.search.space import (
    best_config,
    check_space,
    metric_of,
    search_seed,
    trial_config,
    trial_folder,
    values_of,
)
from tunecore.search.study import TrialStudy
from tunecore.session import open_session
from tunecore.tracking.search_report import TRIALS_FILE, write_search_report
from tunecore.tracking.values import number
from tunecore.training.distributed import Ranks, open_ranks
from tunecore.training.result import TrainResult
from tunecore.training.run import Run

BEST_CONFIG = "best.yaml"
ALLOWED = NEUTRAL_KEYS | {"search.trials", "data.test"}
"""Keys that may differ when a search goes on."""
POLL_SECONDS = 1.0
"""How often a process looks whether the trials of the others have ended."""


def run_search(config: RunConfig, plugins: Plugins, tokenizer: PreTrainedTokenizerBase | None = None) -> SearchResult:
    """Run, resume or join the search ``config`` describes.

    Args:
        config: a run with a ``search``.
        plugins: loaded plugins.
        tokenizer: one already in memory, instead of the one the config names.

    Raises:
        TunecoreError: the configuration, the data or a checkpoint is at fault, or no trial came to its end.
    """
    begun = time.perf_counter()
    config = with_known_length(config)
    check_components(config, plugins.registry)
    check_space(config, plugins.registry)
    with open_ranks(config.training.device, config.training.threads) as ranks:
        search = _Search(config, plugins, ranks)
        with main_first(ranks):
            search.prepare(tokenizer)
        stopped = search.work()
        result = search.interrupted(stopped) if stopped is not None else search.conclude()
    return replace(result, seconds=time.perf_counter() - begun)


class _Search:
    def __init__(self, config: RunConfig, plugins: Plugins, ranks: Ranks) -> None:
        self.config, self.plugins, self.ranks = config, plugins, ranks
        self.folder = Path(config.output_dir)
        self.metric = metric_of(config, plugins.registry)
        self.parameters = config.search.parameters
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.study: TrialStudy | None = None

    def prepare(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Claim the folder, look at the data, and make or load what all trials share."""
        study = None
        if self.ranks.is_main:
            claim(self.config, ALLOWED)
            self.look_at_data()
            # Only then is the folder taken: a mistake in a path leaves no search behind.
            record_config(self.folder, self.config)
            seed, lower = search_seed(self.config), self.metric.startswith("-")
            study = TrialStudy(self.folder, self.config.search, seed, lower_is_better=lower)
            with study.locked():
                self.tidy(study)
                self.make_tokenizer(tokenizer)
        else:
            self.make_tokenizer(tokenizer)
        self.study = study

    def make_tokenizer(self, given: PreTrainedTokenizerBase | None) -> None:
        """Make or load the tokenizer of all trials, unless they try several."""
        if not any(name.startswith("tokenizer") for name in self.parameters):
            self.tokenizer = prepare_tokenizer(self.config, self.plugins, self.folder, given)

    def look_at_data(self) -> None:
        """Find a mistake in the files before a trial does; refuse labelled rows that have changed."""
        if not any(name.startswith(("data.", "head")) for name in self.parameters):
            summary = look_at_data(self.config, self.plugins.registry)
            if summary is not None:
                record_data(self.folder, summary)

    def work(self) -> TrainResult | None:
        """Run trials until all have ended (None), or a signal stops one (its result)."""
        waiting = False
        while True:
            told = self.next()
            if told is None:
                return None
            if "number" not in told:
                if not waiting:
                    self.say("waiting for the trials of other processes to end")
                waiting = True
                time.sleep(POLL_SECONDS)
                continue
            waiting = False
            try:
                result = self.run(told["number"], told["params"], hopeless=told["hopeless"])
            finally:
                if self.study is not None:
                    self.study.let_go()
            if result is not None:
                return result

    def next(self) -> dict[str, Any] | None:
        """The next trial, {} where others still run theirs, None where all have ended; the same on every rank."""
        told: dict[str, Any] | None = None
        if self.study is not None:
            with self.study.locked():
                trial = self.study.claim()
                if trial is not None:
                    hopeless = self.study.is_hopeless(trial.number)
                    told = {"number": trial.number, "params": dict(trial.params), "hopeless": hopeless}
                    self.write_trials(self.study)
                elif not self.study.is_over():
                    told = {}
        shared: dict[str, Any] | None = self.ranks.gather(told)[0]
        return shared

    def run(self, number: int, params: Mapping[str, Any], *, hopeless: bool) -> TrainResult | None:
        """Train one trial and keep its result; returns it only where a signal stopped it."""
        self.say(f"trial {number + 1} of {self.config.search.num_trials}: {describe(params)}")
        if hopeless:
            self.ended(lambda study: study.prune(number))
            return None
        config = trial_config(self.config, number, values_of(self.parameters, params), self.metric)
        if config.head is None and config.data.cache_dir is None:
            config = replace(config, data=replace(config.data, cache_dir=str(self.folder / "cache")))
        watcher = _Watcher(self.study, number, self.metric)
        try:
            with self.plugins.hooks.joined_by(watcher):
                result, _ = fit(config, self.plugins, self.tokenizer)
        except (TrainingError, ConfigError) as error:
            self.failed(number, error)
            return None
        if watcher.pruned:
            self.ended(lambda study: study.prune(number))
        elif result.interrupted:
            if self.study is not None:
                self.study.let_go(orderly=True)
            return result
        elif result.best_metric is None:
            self.ended(lambda study: study.fail(number, f"the metric {self.metric} was never a number"))
        else:
            best = result.best_metric
            self.ended(lambda study: study.complete(number, best))
        return None

    def failed(self, number: int, error: TrainingError | ConfigError) -> None:
        """A trial whose options make no run, or whose loss ran away, has failed; a mistake in the whole is raised."""
        if self.study is not None and isinstance(error, ConfigError):
            worked = any(trial.state not in (RUNNING, FAILED) for trial in self.study.trials())
            if not worked:
                self.study.let_go(orderly=True)
                raise error
        warnings.warn(f"trial {number} failed: {error.message}", stacklevel=2)
        self.ended(lambda study: study.fail(number, error.message))
        if self.ranks.world_size > 1:
            raise error  # the other ranks did not meet it and are elsewhere

    def ended(self, tell: Callable[[TrialStudy], None]) -> None:
        """Keep what became of the claimed trial, and drop the checkpoints that are no longer of use."""
        if self.study is not None:
            with self.study.locked():
                tell(self.study)
                self.tidy(self.study)

    def tidy(self, study: TrialStudy) -> None:
        """Of the trials that have ended, only the best keeps its model."""
        best = study.best()
        for trial in study.trials():
            if trial.state == RUNNING or (best is not None and trial.number == best.number):
                continue
            folder = trial_folder(self.folder, trial.number)
            for path in (*folder.glob("step-*"), *folder.glob(".*-step-*"), folder / FINAL, folder / "cache"):
                shutil.rmtree(path, ignore_errors=True)
        self.write_trials(study)

    def write_trials(self, study: TrialStudy) -> None:
        trials = [vars(trial) | {"params": dict(trial.params)} for trial in study.trials()]
        write_json(self.folder / TRIALS_FILE, {"metric": self.metric, "trials": trials})
        if self.config.tracking.report:
            write_search_report(self.folder)

    def interrupted(self, stopped: TrainResult) -> SearchResult:
        """What there is of a search that a signal ended."""
        return self.result(replace(stopped, steps=0, metrics={}, best_path=None))

    def conclude(self) -> SearchResult:
        """Make the best trial's model the final one, and measure it on the test's rows; one process does it."""
        if self.study is None:
            return self.test()
        with self.study.locked():
            best = self.study.best()
            if best is None:
                told = "; ".join(f"trial {t.number}: {t.reason or t.state}" for t in self.study.trials()[:5])
                raise TrainingError(f"no trial of the search in {str(self.folder)!r} came to its end: {told}")
            values = values_of(self.parameters, best.params)
            config = trial_config(self.config, best.number, values, self.metric)
            source = trial_folder(self.folder, best.number)
            if not (self.folder / FINAL).exists() or model_digest(self.folder) != model_digest(source):
                copy_model(source, self.folder)
            write_text(self.folder / BEST_CONFIG, dump_config(best_config(config, self.config)))
            result = self.test()
            self.write_trials(self.study)
        return result

    def test(self) -> SearchResult:
        """The result, with the test of the final model."""
        told: dict[str, Any] = {}
        if self.study is not None:
            best = self.study.best()
            assert best is not None
            told = {"number": best.number, "value": best.value, "steps": max((s for s, _ in best.curve), default=0)}
        told = self.ranks.gather(told)[0]
        base = TrainResult(
            steps=told["steps"], metrics={}, best_metric=told["value"], best_path=self.folder / FINAL,
            interrupted=False, seconds=0.0,
        )  # fmt: skip
        measured = self.measured if self.config.data.test else None
        return self.result(with_test(base, self.config, self.ranks, measured, trial=told["number"]))

    def measured(self) -> dict[str, Any]:
        """Metrics of the final model on the test's rows."""
        config = replace(self.config, model=ModelConfig(checkpoint=self.config.output_dir))
        session = open_session(config, self.plugins)
        session.unit.to(self.ranks.device)
        session.unit.eval()
        rows = evaluation_rows(
            config.data.test, replace(config, data=replace(config.data, max_length=session.max_length)),
            self.plugins.registry, session.tokenizer, session.head, session.objectives,
        )  # fmt: skip
        return measure(session, rows, config, self.ranks, all_answers=True)

    def result(self, of_best: TrainResult) -> SearchResult:
        trials = [] if self.study is None else self.study.trials()
        best = None if self.study is None else self.study.best()
        return SearchResult(
            trials=tuple(trials), best=best, metric=self.metric, metrics=of_best.metrics, steps=of_best.steps,
            best_metric=None if best is None else best.value, best_path=of_best.best_path,
            interrupted=of_best.interrupted, seconds=0.0, exit_code=of_best.exit_code,
        )  # fmt: skip

    def say(self, line: str) -> None:
        if self.ranks.is_main and self.config.tracking.progress:
            print(line, file=sys.stderr, flush=True)


class _Watcher:
    """Reports the evaluations of a trial, and stops it where it is not worth going on."""

    def __init__(self, study: TrialStudy | None, number: int, metric: str) -> None:
        self._study, self._number, self._metric = study, number, metric.removeprefix("-")
        self.pruned = False

    @hookimpl(trylast=True)
    def tunecore_evaluated(self, run: Run, metrics: Mapping[str, Any]) -> None:
        value, hopeless = number(metrics.get(self._metric)), False
        if self._study is not None and value is not None and math.isfinite(value):
            hopeless = self._study.report(self._number, run.step, run.progress.epoch, value)
        if run.ranks.any(hopeless) and run.step < run.total_steps:
            self.pruned = True
            run.stop.request()
