"""The stages of a run file, one after the other, each from the model of the one before; then the final model.

Every stage is a run (or a search) in a folder of its own, ``output_dir/<name>``. The same command again passes over
the stages whose run has ended and goes on in the one that has not. Processes that run one road at the same time take
turns in its stages, and share the trials of a search.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunecore.config import RunConfig
from tunecore.config_io import Stage, check_components, load_config, load_stages
from tunecore.durable import make_folder, write_text
from tunecore.errors import ConfigError, TunecoreError
from tunecore.inputs import look_at_data
from tunecore.outcome import TEST, recorded
from tunecore.plugins import Plugins
from tunecore.run_folder import (
    FINAL,
    RESULT_FILE,
    RUN_FILE,
    copy_model,
    finished,
    model_digest,
    record_config,
    write_json,
)
from tunecore.runner import alone_in, fit, main_first
from tunecore.saved_tasks import with_known_length
from tunecore.search.result import SearchResult
from tunecore.search.search import run_search
from tunecore.search.space import check_space
from tunecore.tracking.road_report import write_road_report
from tunecore.training.distributed import Ranks, open_ranks
from tunecore.training.result import Result, TrainResult

START_FILE = "started_from"
"""In a stage's folder: the digest of the model it started from."""


@dataclass(frozen=True)
class StageResult:
    """How one stage ended."""

    name: str
    folder: Path
    skipped: bool
    """It had ended before this call."""
    result: TrainResult | SearchResult


@dataclass(frozen=True, kw_only=True)
class RoadResult(Result):
    """How a run of several stages ended."""

    stages: tuple[StageResult, ...]
    """Those that were run or passed over, in order."""
    head: str | Mapping[str, Any] | None
    """The head of the last stage."""


def run_road(config: RunConfig, plugins: Plugins, tokenizer: PreTrainedTokenizerBase | None = None) -> RoadResult:
    """Run, or resume, the stages of ``config``.

    Args:
        config: a run with ``stages``.
        plugins: loaded plugins.
        tokenizer: one already in memory, for the first stage.

    Raises:
        TunecoreError: as of the run of a stage; the stage is named where its configuration is at fault.
    """
    begun = time.perf_counter()
    stages = load_stages(config)
    for stage in stages:
        with _naming(stage):
            check_components(stage.config, plugins.registry)
            if stage.config.search.space:
                check_space(stage.config, plugins.registry)
    done: list[StageResult] = []
    with open_ranks(config.training.device, config.training.threads) as ranks:
        with main_first(ranks):
            _look_ahead(config, stages, plugins)
        for number, stage in enumerate(stages):
            with _naming(stage), _turn(stage, ranks):
                done.append(_run_stage(stage, number, plugins, tokenizer if number == 0 else None, ranks))
            if done[-1].result.interrupted:
                break
        else:
            with alone_in(Path(config.output_dir), ranks, waiting=lambda _: None):
                if ranks.is_main:
                    _conclude(config, done)
            ranks.barrier()
        if ranks.is_main and config.tracking.report:
            write_road_report(Path(config.output_dir))
    last = done[-1].result
    whole = not last.interrupted
    return RoadResult(
        stages=tuple(done), head=stages[-1].config.head, metrics=last.metrics, steps=last.steps,
        best_metric=last.best_metric, best_path=Path(config.output_dir) / FINAL if whole else None,
        interrupted=last.interrupted, seconds=time.perf_counter() - begun, exit_code=last.exit_code,
    )  # fmt: skip


@contextmanager
def _naming(stage: Stage) -> Iterator[None]:
    """Errors inside say which stage they are of."""
    try:
        yield
    except TunecoreError as error:
        where = f"stage {stage.name!r}: "
        if error.message.startswith(where):
            raise
        raise type(error)(f"{where}{error.message}", hint=error.hint) from error


def _look_ahead(config: RunConfig, stages: Sequence[Stage], plugins: Plugins) -> None:
    """Take the folder, and look at the data of every stage that is still to run: not when its turn comes, in hours."""
    folder = Path(config.output_dir)
    run_file = folder / RUN_FILE
    if run_file.exists() and not load_config(run_file).stages:
        raise ConfigError(
            f"output_dir {config.output_dir!r} holds another run, one without stages", hint="Name another output_dir."
        )
    if (folder / "config.json").exists() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"output_dir {config.output_dir!r} is a file, or a model that no run made", hint="Name another output_dir."
        )
    for stage in stages:
        if not (Path(stage.config.output_dir) / RESULT_FILE).exists():
            with _naming(stage):
                look_at_data(stage.config, plugins.registry)
    make_folder(folder)
    record_config(folder, config)


@contextmanager
def _turn(stage: Stage, ranks: Ranks) -> Iterator[None]:
    """Keep other runs out of a stage that is one run; the processes of a search share it."""
    if stage.config.search.space:
        yield
        return

    def waiting(holder: str) -> None:
        print(f"waiting for another process to end stage {stage.name!r}: {holder}", file=sys.stderr, flush=True)

    folder = Path(stage.config.output_dir)
    with main_first(ranks):
        make_folder(folder)
    with alone_in(folder, ranks, waiting):
        yield


def _run_stage(
    stage: Stage, number: int, plugins: Plugins, tokenizer: PreTrainedTokenizerBase | None, ranks: Ranks
) -> StageResult:
    """Run a stage, or pass over it where its run has ended."""
    folder = Path(stage.config.output_dir)
    with main_first(ranks):
        if ranks.is_main and number > 0:
            _check_start(stage, folder)
    if stage.config.search.space:
        return StageResult(stage.name, folder, False, run_search(stage.config, plugins, tokenizer))
    asked = with_known_length(plugins.hooks.tunecore_configure(config=stage.config))  # what a run records
    known = ranks.gather(finished(asked) if ranks.is_main else None)[0]
    if known is not None:
        return StageResult(stage.name, folder, True, recorded(stage.config, known))
    result, _ = fit(stage.config, plugins, tokenizer, held=True)
    return StageResult(stage.name, folder, False, result)


def _check_start(stage: Stage, folder: Path) -> None:
    """Keep which model a stage starts from, and refuse to go on from another.

    Raises:
        ConfigError: the stage before has another result than when this one began.
    """
    assert stage.config.model.checkpoint is not None, "from the second stage on"
    digest, path = model_digest(stage.config.model.checkpoint), folder / START_FILE
    if not path.exists():
        make_folder(folder)
        write_text(path, digest + "\n")
    elif path.read_text(encoding="utf-8").strip() != digest:
        raise ConfigError(
            f"{str(folder)!r} was begun from another result of the stage before",
            hint="Remove that folder to run the stage anew, or give the earlier stages their old options.",
        )


def _conclude(config: RunConfig, done: Sequence[StageResult]) -> None:
    """Make the last stage's model the final one."""
    folder, last = Path(config.output_dir), done[-1]
    if not (folder / FINAL).exists() or model_digest(folder) != model_digest(last.folder):
        copy_model(last.folder, folder)
    stages = [{"name": s.name, "steps": s.result.steps, "best_metric": s.result.best_metric} for s in done]
    test = {name: value for name, value in last.result.metrics.items() if name.startswith(TEST)}
    write_json(folder / RESULT_FILE, {"stages": stages, "metrics": test})
