"""What a run came to: its test, and ``result.json``, from which a finished run is known again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunecore.config import RunConfig
from tunecore.run_folder import RESULT_FILE, best_name, model_digest, read_result, write_json
from tunecore.tracking.jsonl import METRICS_FILE, append_row, read_rows
from tunecore.training.distributed import Ranks
from tunecore.training.result import TrainResult

TEST = "test/"
"""What the names of metrics over ``data.test`` begin with."""


def with_test(
    result: TrainResult, config: RunConfig, ranks: Ranks, measure: Callable[[], dict[str, Any]] | None, **told: Any
) -> TrainResult:
    """Measure the chosen model on ``data.test`` and keep the result: in ``metrics.jsonl``, ``result.json`` and here.

    What was measured before, of the same model on the same files, is not measured again.

    Args:
        result: how the run ended.
        config: the run; its folder holds the chosen model.
        ranks: all ranks, each of which calls this.
        measure: measures the chosen model on the test's rows; None where there are none.
        told: more for ``result.json``.
    """
    folder = Path(config.output_dir)
    before = (read_result(folder) or {}) if ranks.is_main else {}
    of = {"model": model_digest(folder), "files": list(config.data.test)} if ranks.is_main else {}
    test = ranks.gather(before.get("test") if before.get("tested") == of else None)[0]
    if test is None and measure is not None:
        test = measure()
        if ranks.is_main:
            append_row(folder / METRICS_FILE, result.steps, {TEST + name: value for name, value in test.items()})
    result = replace(result, metrics={**result.metrics, **{TEST + name: value for name, value in (test or {}).items()}})
    if ranks.is_main:
        metrics = _of_evaluation(result.metrics) or before.get("metrics") or _last_evaluation(folder)
        ended = {"steps": result.steps, "best_metric": result.best_metric, "best": best_name(folder)}
        write_json(folder / RESULT_FILE, {**ended, **told, "metrics": metrics, "test": test, "tested": of})
    return result


def _of_evaluation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.startswith("eval/")}


def _last_evaluation(folder: Path) -> dict[str, Any]:
    """What the run logged of its last evaluation: one that died between that and its result does not evaluate again."""
    rows = map(_of_evaluation, reversed(read_rows(folder / METRICS_FILE)))
    return next(filter(None, rows), {})


def recorded(config: RunConfig, result: Mapping[str, Any]) -> TrainResult:
    """How a finished run ended, from its ``result.json``."""
    folder = Path(config.output_dir)
    test = {TEST + name: value for name, value in (result.get("test") or {}).items()}
    best = result.get("best")
    return TrainResult(
        steps=result["steps"], metrics={**result["metrics"], **test}, best_metric=result["best_metric"],
        best_path=folder / best if best else None, interrupted=False, seconds=0.0,
    )  # fmt: skip
