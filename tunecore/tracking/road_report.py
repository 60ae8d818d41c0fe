"""report.html of a run with stages: what each stage came to, the test, and the curves of all.

Drawn from the folders of the stages, so it can be made again at any time, also while a stage is still running.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunecore.durable import write_text
from tunecore.errors import DataError
from tunecore.tracking.charts import table
from tunecore.tracking.jsonl import METRICS_FILE, read_rows
from tunecore.tracking.page import page, section
from tunecore.tracking.progress import short
from tunecore.tracking.report import REPORT_FILE, curves, settings_section
from tunecore.tracking.search_report import TRIALS_FILE
from tunecore.tracking.values import number


def write_road_report(run_dir: str | os.PathLike[str]) -> Path:
    """Draw ``report.html`` in the folder of a run with stages.

    Raises:
        DataError: the folder holds no run.yaml with stages.
    """
    folder = Path(run_dir)
    settings = _read(folder / "run.yaml")
    stages = settings.get("stages") or []
    if not stages:
        raise DataError(f"{str(folder)!r} is not the folder of a run with stages", hint="Name its output_dir.")
    results = {stage["name"]: _read(folder / stage["name"] / "result.json") for stage in stages}
    rows = [_row(folder / stage["name"], stage, settings, results[stage["name"]]) for stage in stages]
    test = results[stages[-1]["name"]].get("test") or {}
    scalars = [(name, short(value)) for name, raw in test.items() if (value := number(raw)) is not None]
    header = ("stage", "trains", "steps", "best metric", "best checkpoint", "its report")
    parts = [
        section("Stages", table(header, rows)),
        section("Test of the final model", table((), scalars) if scalars else ""),
        *(
            section(f"Curves of {stage['name']}", curves(read_rows(folder / stage["name"] / METRICS_FILE)))
            for stage in stages
            if not (folder / stage["name"] / TRIALS_FILE).exists()
        ),
        section("Settings", settings_section(settings)),
    ]
    ended = sum(bool(result) for result in results.values())
    target = folder / REPORT_FILE
    title = f"{folder.resolve().name}: {', '.join(stage['name'] for stage in stages)}"
    write_text(target, page(title, f"{ended} of {len(stages)} stages have ended.", parts))
    return target


def _row(folder: Path, stage: Mapping[str, Any], settings: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    own = _read(folder / "run.yaml") or {**settings, **stage}
    head, objectives = own.get("head"), own.get("objectives") or {}
    trains = ", ".join(objectives) or str(head if isinstance(head, str) else next(iter(head or {}), "-"))
    if (stage.get("search") or {}).get("space"):
        trains += " (search)"
    best = number(result.get("best_metric"))
    chosen = f"trial-{result['trial']}" if "trial" in result else result.get("best") or ("final" if result else "-")
    steps = f"{result['steps']:,}" if result else "-"
    metric = "-" if best is None else short(best)
    return [stage["name"], trains, steps, metric, chosen, f"{stage['name']}/{REPORT_FILE}"]


def _read(path: Path) -> Mapping[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded if isinstance(loaded, Mapping) else {}
