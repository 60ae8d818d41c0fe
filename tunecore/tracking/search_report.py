"""report.html of a search: every trial in a table, how the best came about, and the metric over each option.

Drawn from ``trials.json`` and the search's ``run.yaml`` and ``result.json``, so it can be made again at any time, also
while trials are still running.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunecore.durable import write_text
from tunecore.errors import DataError
from tunecore.tracking.charts import Point, Series, line_chart, scatter_chart, table
from tunecore.tracking.page import page, section, tiles
from tunecore.tracking.progress import short
from tunecore.tracking.report import REPORT_FILE, nested, settings_section
from tunecore.tracking.values import number

TRIALS_FILE = "trials.json"
BEST_COLOUR, OTHER_COLOUR, PRUNED_COLOUR = 1, 0, 3
MOST_CURVES = 6

Trials = Sequence[Mapping[str, Any]]


def write_search_report(run_dir: str | os.PathLike[str]) -> Path:
    """Draw ``report.html`` in a search's folder.

    Raises:
        DataError: the folder holds no trials.json.
    """
    folder = Path(run_dir)
    try:
        told = json.loads((folder / TRIALS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{str(folder)!r} is not the folder of a search: {TRIALS_FILE} is not there",
            hint="Name the output_dir of a search.",
        ) from None
    settings = _read(folder / "run.yaml")
    result = _read(folder / "result.json")
    trials, metric = told["trials"], told["metric"]
    best = best_of(trials, metric)
    parts = [
        tiles(_figures(trials, best, metric)),
        section("Test of the final model", nested(_scalars(result.get("test") or {}))),
        section("How it went", _grid(_history(trials, metric), _curves(trials, best, metric))),
        section("The metric over each option", _grid(*_slices(trials, best, settings))),
        section("Trials", _table(trials, best, metric)),
        section("Settings", settings_section(settings)),
    ]
    target = folder / REPORT_FILE
    title = f"{folder.resolve().name}: search for {metric.removeprefix('-')}"
    write_text(target, page(title, _lead(trials, best), parts))
    return target


def best_of(trials: Trials, metric: str) -> Mapping[str, Any] | None:
    """The complete trial with the best value, the first of equals; a leading "-" means lower is better."""
    sign = 1.0 if metric.startswith("-") else -1.0
    complete = [t for t in trials if t["state"] == "complete"]
    return min(complete, key=lambda t: (sign * t["value"], t["number"]), default=None)


def _read(path: Path) -> Mapping[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded if isinstance(loaded, Mapping) else {}


def _scalars(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {name: short(value) for name, raw in metrics.items() if (value := number(raw)) is not None}


def _lead(trials: Trials, best: Mapping[str, Any] | None) -> str:
    states = [t["state"] for t in trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed", "running") if s in states)
    return f"{len(trials)} trials: {counts}." + ("" if best is None else f" The best is trial {best['number']}.")


def _figures(trials: Trials, best: Mapping[str, Any] | None, metric: str) -> list[tuple[str, str]]:
    if best is None:
        return [("trials", str(len(trials)))]
    values = sorted(t["value"] for t in trials if t["state"] == "complete")
    tried = [(name, _shown(value)) for name, value in best["params"].items()]
    return [
        ("trials", str(len(trials))), (f"best {metric.removeprefix('-')}", short(best["value"])),
        ("median", short(values[len(values) // 2])), *tried,
    ]  # fmt: skip


def _history(trials: Trials, metric: str) -> str:
    """Each trial's metric by number, and the best so far."""
    done = [(float(t["number"]), float(t["value"])) for t in trials if t["state"] == "complete"]
    choose = min if metric.startswith("-") else max
    best = [(x, choose(y for _, y in done[: i + 1])) for i, (x, _) in enumerate(done)]
    if not done:
        return ""
    name = metric.removeprefix("-")
    return line_chart(
        f"{name} by trial", [Series("trial", done, dots=True), Series("best so far", best)],
        note="Complete trials only.",
    )  # fmt: skip


def _curves(trials: Trials, best: Mapping[str, Any] | None, metric: str) -> str:
    """The evaluations of the best trials over their steps."""
    sign = 1.0 if metric.startswith("-") else -1.0
    complete = sorted((t for t in trials if t["state"] == "complete"), key=lambda t: (sign * t["value"], t["number"]))
    series = [
        Series(f"trial {t['number']}", [(float(s), float(number(v) or math.nan)) for s, v in t["curve"]], dots=True)
        for t in complete[:MOST_CURVES]
    ]
    return line_chart(f"{metric.removeprefix('-')} by step, the best trials", series)


def _slices(trials: Trials, best: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> list[str]:
    """One chart an option: the metric of every trial over what it tried."""
    space = (settings.get("search") or {}).get("space") or {}
    shown = [t for t in trials if t["state"] in ("complete", "pruned") and t["value"] is not None]
    charts = []
    for name in space:
        tried = [t for t in shown if name in t["params"]]
        values = [t["params"][name] for t in tried]
        given = space[name]
        is_range = isinstance(given, Mapping)
        numeric = is_range or all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
        names = None if numeric else list(dict.fromkeys(_shown(_label(v)) for v in given))
        points = [
            Point(
                float(value) if names is None else float(names.index(_shown(value))), float(t["value"]), _tip(t),
                _colour(t, best),
            )
            for t, value in zip(tried, values, strict=True)
        ]  # fmt: skip
        log = is_range and bool(given.get("log"))
        charts.append(scatter_chart(name, points, log=log, names=names))
    return charts


def _label(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _colour(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> int:
    if trial is best:
        return BEST_COLOUR
    return PRUNED_COLOUR if trial["state"] == "pruned" else OTHER_COLOUR


def _tip(trial: Mapping[str, Any]) -> str:
    tried = ", ".join(f"{name}={_shown(value)}" for name, value in trial["params"].items())
    return f"trial {trial['number']} ({trial['state']}): {short(trial['value'])}; {tried}"


def _table(trials: Trials, best: Mapping[str, Any] | None, metric: str) -> str:
    sign = 1.0 if metric.startswith("-") else -1.0

    def place(trial: Mapping[str, Any]) -> tuple[bool, float, int]:
        value = trial["value"] if trial["state"] == "complete" else None
        return value is None, 0.0 if value is None else sign * value, trial["number"]

    options = list(dict.fromkeys(name for t in trials for name in t["params"]))
    rows = []
    for t in sorted(trials, key=place):
        value = "-" if t["value"] is None else f"{t['value']:.5g}"
        state = "best" if t is best else t["state"]
        tried = [_shown(t["params"].get(name)) for name in options]
        rows.append([f"trial-{t['number']}", value, state, *tried, t["reason"] or ""])
    header = ["trial", metric.removeprefix("-"), "state", *options, "why it failed"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows, caption="Best first; the value of a pruned trial is its last evaluation.")


def _shown(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)


def _grid(*charts: str) -> str:
    body = "".join(charts)
    return f'<div class="grid2">{body}</div>' if body else ""
