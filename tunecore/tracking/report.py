"""report.html: what a run did, in one file that needs nothing else.

Everything is read back from the run's folder (metrics.jsonl, run.yaml, data_summary.json, the newest manifest), so a
report can be made again at any time, also of a run that is still going or was killed. C classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tunecore.config_yaml import parse_yaml
from tunecore.durable import write_text
from tunecore.errors import DataError
from tunecore.tracking.charts import Series, heat_table, line_chart, share_bar, table
from tunecore.tracking.jsonl import METRICS_FILE, read_rows
from tunecore.tracking.page import fold, page, section, tiles
from tunecore.tracking.progress import PHASE_PREFIX, duration, short
from tunecore.tracking.values import number

REPORT_FILE = "report.html"
MATRIX, LABELS, REPORT = "confusion_matrix", "labels", "report"
MOST_LABELS = 60
"""A wider confusion matrix is given as its commonest confusions."""

Rows = Sequence[Mapping[str, Any]]


class Extra(NamedTuple):
    """A table of the caller's own: plain strings, first column the row's name."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    title: str | None = None,
    extra: Sequence[Extra] = (),
    earlier: Sequence[str | os.PathLike[str]] = (),
    path: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw ``report.html`` in a run's folder from what lies there.

    Args:
        run_dir: the folder of a run.
        title: heading; None is made of the folder's name and what was trained.
        extra: tables to put first.
        earlier: folders of runs this one came from, whose curves are drawn too.
        path: the file to write; None is ``report.html`` in the run's folder.

    Returns:
        The file's path. It is written whole or not at all.

    Raises:
        DataError: the folder holds neither metrics.jsonl nor run.yaml.
    """
    folder = Path(run_dir)
    settings_file, metrics_file = folder / "run.yaml", folder / METRICS_FILE
    if not settings_file.is_file() and not metrics_file.is_file():
        raise DataError(
            f"{str(folder)!r} is not the folder of a run: neither {METRICS_FILE} nor run.yaml is there",
            hint="Name the output_dir of a run.",
        )
    rows = read_rows(metrics_file)
    loaded = parse_yaml(_text_of(settings_file), str(settings_file)) if settings_file.is_file() else {}
    settings: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {}
    best = _text_of(folder / "best").strip() if (folder / "best").is_file() else ""
    parts = [
        tiles(_figures(rows)),
        *(section(e.title, _note(e.note), table(e.header, e.rows)) for e in extra),
        section("Curves", curves(rows)) or _note("No metrics were logged."),
        *(section(f"Curves of {Path(run).name}", curves(read_rows(Path(run) / METRICS_FILE))) for run in earlier),
        section("Metrics", _final_metrics(rows)),
        section("Predictions by class", _confusion(rows, best)),
        section("Predictions by class, test", _confusion(rows, "", "test/")),
        section("Data", nested(_read_json(folder / "data_summary.json"))),
        section("Settings", settings_section(settings)),
        section("Machine and versions", nested(_environment(folder))),
    ]
    target = folder / REPORT_FILE if path is None else Path(path)
    write_text(target, page(title or _title(folder, settings), _lead(rows, best), parts))
    return target


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_text_of(path)) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", hint="Delete it; the report can do without.") from error


def _text_of(path: Path) -> str:
    """A file's text; what is not UTF-8 shows as marks, for a report is not the place to fail over it."""
    return path.read_text(encoding="utf-8", errors="replace")


def _title(folder: Path, settings: Mapping[str, Any]) -> str:
    name = folder.resolve().name
    head, objectives = settings.get("head"), settings.get("objectives")
    if head:
        return f"{name}: fine-tuning for {head if isinstance(head, str) else next(iter(head))}"
    return f"{name}: pretraining with {', '.join(objectives)}" if objectives else name


def _lead(rows: Rows, best: str) -> str:
    if not rows:
        return "No metrics were logged."
    text = f"{len(rows)} rows of metrics, steps {rows[0]['step']:,} to {rows[-1]['step']:,}."
    return f"{text} Best checkpoint: {best}." if best else text


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    found = ((row["step"], number(row[key])) for row in rows if key in row)
    return [(float(step), value) for step, value in found if value is not None]


def _series(rows: Rows, keys: Sequence[str]) -> list[Series]:
    made = []
    for key in keys:
        points = _points(rows, key)
        if points:
            name = f"{key.removeprefix('eval/')} (evaluation)" if key.startswith("eval/") else key
            made.append(Series(name, points, dots=key.startswith("eval/") and len(points) <= 120))
    return made


def _keys(rows: Rows) -> list[str]:
    """Keys of scalar metrics, in the order they first appear."""
    seen: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "epoch", "time") and number(value) is not None:
                seen.setdefault(key)
    return list(seen)


def curves(rows: Rows) -> str:
    """Charts of all that a run logged."""
    keys = _keys(rows)
    tasks = [k.removeprefix("loss/") for k in keys if k.startswith("loss/")]
    charts, drawn = [line_chart("Loss", _series(rows, ["loss", "eval/loss"]))], set()
    if len(tasks) > 1:
        for kind in ("loss", "accuracy"):
            for task in tasks:
                pair = [f"{kind}/{task}", f"eval/{kind}/{task}"]
                drawn.update(pair)
                charts.append(line_chart(f"{kind.capitalize()} of {task}", _series(rows, pair)))
    scores = [k for k in keys if k not in drawn and _is_score(rows, k)]
    for begin in range(0, len(scores), 4):
        charts.append(line_chart("Accuracy and other scores", _series(rows, scores[begin : begin + 4])))
    charts.append(line_chart("Learning rate", _series(rows, ["learning_rate"])))
    charts.append(line_chart("Gradient norm, before clipping", _series(rows, ["grad_norm"])))
    charts.append(line_chart("Useful tokens per second", _series(rows, ["tokens_per_second"])))
    charts.append(share_bar("Share of time by phase", _phases(rows)))
    body = "".join(charts)
    return f'<div class="grid2">{body}</div>' if body else ""


def _is_score(rows: Rows, key: str) -> bool:
    """Scores between -1 and 1 that belong in one picture: accuracies, F1, correlation; a loss does not."""
    if not key.startswith(("eval/", "accuracy")) or "loss" in key or key.count("/") > 2:
        return False
    return all(-1 <= y <= 1 for _, y in _points(rows, key) if math.isfinite(y))


def _phases(rows: Rows) -> list[tuple[str, float]]:
    seconds: dict[str, float] = {}
    for row in rows:
        for key, raw in row.items():
            value = number(raw) if key.startswith(PHASE_PREFIX) else None
            if value is not None and math.isfinite(value) and value > 0:
                name = key.removeprefix(PHASE_PREFIX)
                seconds[name] = seconds.get(name, 0.0) + value
    total = sum(seconds.values())
    return [(name, value / total) for name, value in seconds.items()] if total else []


def _last(rows: Rows, prefix: str) -> Mapping[str, Any] | None:
    return next((row for row in reversed(rows) if any(k.startswith(prefix) for k in row)), None)


def _figures(rows: Rows) -> list[tuple[str, str]]:
    if not rows:
        return []
    figures = [("steps", f"{rows[-1]['step']:,}")]
    evaluation = _last(rows, "eval/") or {}
    test = _last(rows, "test/") or {}
    for key in ("accuracy", "f1_macro", "loss"):
        for kind, prefix, row in (("evaluation", "eval/", evaluation), ("test", "test/", test)):
            value = number(row.get(prefix + key))
            if value is not None:
                figures.append((f"{key} ({kind})", short(value)))
    loss = next((number(row["loss"]) for row in reversed(rows) if "loss" in row), None)
    if loss is not None:
        figures.append(("loss (training)", short(loss)))
    rates = sorted(y for _, y in _points(rows, "tokens_per_second") if math.isfinite(y))
    if rates:
        figures.append(("useful tokens/s (median)", f"{rates[len(rates) // 2]:,.0f}"))
    times = [value for row in rows if (value := number(row.get("time"))) is not None]
    if len(times) > 1:
        figures.append(("first to last row", duration(times[-1] - times[0])))
    return figures


def _final_metrics(rows: Rows) -> str:
    parts = []
    for name, prefix in (("training", "loss"), ("evaluation", "eval/"), ("test", "test/")):
        row = _last(rows, prefix)
        if row is None:
            continue
        wanted = [k for k in _keys([row]) if k.startswith(prefix) or (name == "training" and "eval/" not in k)]
        names = {k: k.removeprefix(prefix) if prefix.endswith("/") else k for k in wanted}
        cells = [(names[k], short(value)) for k in wanted if (value := number(row[k])) is not None]
        caption = f"Test of the chosen model (run of {row['step']:,} steps)" if name == "test" else (
            f"Last {name}, step {row['step']:,}"
        )
        parts.append(f'<div class="card">{table((), cells, caption=caption)}</div>')
    return f'<div class="grid2">{"".join(parts)}</div>' if parts else ""


def _confusion(rows: Rows, best: str, prefix: str = "eval/") -> str:
    """The confusion matrix of the best checkpoint's step (else the last), and what follows from it per class."""
    rows = [{key.removeprefix(prefix): v for key, v in row.items() if key.startswith((prefix, "step"))} for row in rows]
    row = _best_with(rows, MATRIX, best)
    if row is None:
        return _by_class(rows, best)
    matrix = [[number(v) or 0.0 for v in line] for line in row[MATRIX]]
    given = row.get(LABELS)
    labels = [str(v) for v in given] if isinstance(given, list) and len(given) == len(matrix) else None
    labels = labels or [str(i) for i in range(len(matrix))]
    step = f"step {row['step']:,}"
    if len(matrix) <= MOST_LABELS:
        caption = f"Rows: true class. Columns: predicted class. Shade: share of the row. Evaluation at {step}."
        picture = heat_table(matrix, labels, caption=caption)
    else:
        wrong = list(_commonest(matrix, labels))
        picture = table(("true class", "taken for", "times"), wrong, caption=f"Most common confusions, {step}")
    header = ("class", "precision", "recall", "F1", "rows")
    return f'{picture}<br>{table(header, list(class_report(matrix, labels)), caption=f"By class, {step}")}'


def _best_with(rows: Rows, key: str, best: str) -> Mapping[str, Any] | None:
    """The row of the best checkpoint's step that has something under ``key``, else the last that has."""
    found = [row for row in rows if isinstance(row.get(key), list | Mapping) and row[key]]
    return next((r for r in reversed(found) if best == f"step-{r['step']}"), found[-1] if found else None)


def _by_class(rows: Rows, best: str) -> str:
    """What a head that has no confusion matrix (spans of words) says of each class."""
    row = _best_with(rows, REPORT, best)
    if row is None:
        return ""
    lines = [
        [name, *(f"{number(scores.get(key)) or 0:.3f}" for key in ("precision", "recall", "f1")),
         f"{number(scores.get('support')) or 0:,.0f}"]
        for name, scores in row[REPORT].items()
    ]  # fmt: skip
    return table(("class", "precision", "recall", "F1", "true ones"), lines, caption=f"By class, step {row['step']:,}")


def _commonest(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    wrong = [(n, i, j) for i, line in enumerate(matrix) for j, n in enumerate(line) if i != j and n > 0]
    for n, i, j in sorted(wrong, reverse=True)[:40]:
        yield labels[i], labels[j], short(n)


def class_report(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> Iterator[list[str]]:
    """Precision, recall, F1 and row count per class of a [C, C] matrix (rows are true classes), and their mean.

    A figure whose denominator is zero (a class never predicted) is 0. The mean is over the classes that occur, as
    true or as predicted ones, like the macro F1 the head reports.
    """
    scores = []
    for c, label in enumerate(labels):
        hit, rows, predicted = matrix[c][c], sum(matrix[c]), sum(line[c] for line in matrix)
        precision, recall = hit / predicted if predicted else 0.0, hit / rows if rows else 0.0
        f1 = 2 * hit / (rows + predicted) if rows + predicted else 0.0
        if rows + predicted:
            scores.append((precision, recall, f1))
        yield [label, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{rows:,.0f}"]
    means = [f"{sum(score[i] for score in scores) / max(len(scores), 1):.3f}" for i in range(3)]
    yield ["mean of classes that occur", *means, f"{sum(map(sum, matrix)):,.0f}"]


def settings_section(settings: Mapping[str, Any]) -> str:
    """A folded table for each section of a run file."""
    plain = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    groups = [fold("run", nested(plain), opened=True)] if plain else []
    return "".join([*groups, *(fold(k, nested(v)) for k, v in settings.items() if isinstance(v, Mapping))])


def _environment(folder: Path) -> Any:
    """Facts of the machine from the newest checkpoint's manifest, or environment.json."""
    manifests = sorted(folder.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
    if not manifests:
        return _read_json(folder / "environment.json")
    manifest = _read_json(manifests[-1])
    found: dict[str, Any] = {"checkpoint": manifests[-1].parent.name}
    for part in (manifest, manifest.get("info", {})):
        found.update({k: part[k] for k in ("machine", "versions", "environment", "plugins") if part.get(k)})
    return found


def nested(value: Any) -> str:
    """Facts of any depth as tables: mappings by key, lists of mappings by column; "" for nothing."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, Mapping):
        cells = (f'<tr><th scope="row">{escape(str(k))}</th><td>{nested(v) or "-"}</td></tr>' for k, v in value.items())
        return f'<div class="scroll"><table class="words"><tbody>{"".join(cells)}</tbody></table></div>'
    if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        header = list(dict.fromkeys(str(k) for v in value for k in v))
        return table(header, [[_leaf(v.get(k)) for k in header] for v in value])
    if isinstance(value, list):
        return escape(", ".join(map(_leaf, value)))
    return escape(_leaf(value))


def _leaf(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else str(value)
