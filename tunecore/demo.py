"""The whole way, on text that ships with Python: tokenizer, pretraining, fine-tuning, evaluation, prediction, report.

It also measures what pretraining was worth: the same fine-tuning, over several seeds, once from the pretrained
weights and once from random ones. The figures printed are those of this run on this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tunecore.demo_data import DemoData, Row, collect
from tunecore.engine import Engine
from tunecore.tracking.progress import duration
from tunecore.tracking.report import REPORT_FILE, Extra, write_report
from tunecore.training.result import TrainResult


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Sizes of the demo. The defaults are made for two CPU cores."""

    size: str = "tiny"
    """Model size, as in ``model.size``."""
    overrides: Mapping[str, Any] = field(
        default_factory=lambda: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    )
    """Fields of the model's configuration, for pretrained and random weights alike. No dropout: in minutes a model
    learns too little to overfit."""
    vocab_size: int = 4096
    max_length: int = 64
    pretrain_steps: int = 6000
    pretrain_batch: int = 16
    pretrain_rate: float = 1e-3
    mask_rate: float = 0.15
    epochs: float = 10
    finetune_rate: float = 5e-4
    finetune_batch: int = 16
    seeds: int = 3
    train_rows: int = 300
    test_rows: int = 600


QUICK = DemoPlan(
    vocab_size=1000, max_length=32, pretrain_steps=6, pretrain_batch=8, epochs=1, seeds=1, train_rows=44, test_rows=44
)
"""Every part of the demo in seconds; its figures mean nothing."""


class Arm(NamedTuple):
    """One way to start fine-tuning, and the test metrics of each seed."""

    name: str
    metrics: list[dict[str, Any]]

    def mean_and_spread(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over the seeds (0 with one seed)."""
        values = [float(m[metric]) for m in self.metrics]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def text(self, metric: str) -> str:
        mean, spread = self.mean_and_spread(metric)
        return f"{mean:.3f} ± {spread:.3f}"


class DemoResult(NamedTuple):
    """What the demo found."""

    report: Path
    pretrained: Arm
    scratch: Arm
    chance: float
    seconds: float

    @property
    def gains(self) -> list[float]:
        """Accuracy with pretrained weights minus accuracy with random ones, seed by seed."""
        pairs = zip(self.pretrained.metrics, self.scratch.metrics, strict=True)
        return [float(a["accuracy"]) - float(b["accuracy"]) for a, b in pairs]


def run_demo(
    output: str | Path = "runs/demo",
    *,
    quick: bool = False,
    plan: DemoPlan | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Run the demo and print what it does.

    Args:
        output: folder for runs, model and report; where it exists already, a number is added to the name.
        quick: every part, but so short that the figures mean nothing (for tests).
        plan: other sizes.
        console: where to print; None is the terminal.

    Raises:
        DataError: this Python came without the sources of its standard library.
    """
    plan = plan or (QUICK if quick else DemoPlan())
    say = (console or Console(highlight=False)).print
    begun = time.monotonic()
    folder = _fresh(Path(output))
    say("[bold]1  Text[/]: docstrings and language reference of this Python's standard library")
    data = collect(train_rows=plan.train_rows, test_rows=plan.test_rows)
    say(_data_table(data))

    say(f"\n[bold]2  Tokenizer and pretraining[/]: BERT-{plan.size}, masked words and next sentence")
    engine = _pretrain(plan, data, folder)

    say(f"\n[bold]3  Fine-tuning[/]: which of {len(data.labels)} packages is a docstring from?")
    pretrained, best = _finetune(plan, data, folder, "pretrained", lambda seed: _from_run(engine, folder, seed))
    scratch, _ = _finetune(plan, data, folder, "scratch", lambda seed: _from_nothing(engine, plan, seed))
    result = DemoResult(folder / REPORT_FILE, pretrained, scratch, data.chance, time.monotonic() - begun)
    extra = _comparison(result, plan, data)
    say(_rich_table(extra))
    say(extra.note)

    say("\n[bold]4  Predictions[/] for docstrings of files the model never saw")
    say(_predictions(best, data.test))
    best.save(folder / "model")
    runs = folder / "pretrained-0", folder / "pretrain"
    write_report(runs[0], title="tunecore demo", extra=[extra], earlier=runs[1:], path=result.report)
    say(f"\nReport: {result.report}\nModel:  {folder / 'model'} (loads in plain transformers)")
    say(f"Took {duration(time.monotonic() - begun)}.")
    return result


def _fresh(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3 ... that is not there: the demo never resumes or overwrites."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    candidate.mkdir(parents=True)
    return candidate


def _pretrain(plan: DemoPlan, data: DemoData, folder: Path) -> Engine:
    engine = Engine.from_scratch(
        "bert",
        size=plan.size,
        text=data.documents,
        vocab_size=plan.vocab_size,
        max_length=plan.max_length,
        overrides=plan.overrides,
        seed=0,
    )
    result = engine.pretrain(
        data.documents,
        objectives={"masked_lm": {"weight": 1.0, "mask_rate": plan.mask_rate}, "next_sentence": 1.0},
        eval=data.held_out_documents,
        steps=plan.pretrain_steps,
        batch_size=plan.pretrain_batch,
        learning_rate=plan.pretrain_rate,
        output_dir=folder / "pretrain",
        evaluation={"every": max(plan.pretrain_steps // 4, 1)},
        tracking={"every": max(plan.pretrain_steps // 10, 1)},
        checkpoint={"keep": 1},
    )
    _stop_if_interrupted(result)
    return engine


def _stop_if_interrupted(result: TrainResult) -> None:
    """Ctrl-C in one part of the demo ends all of it; a half-trained model would give half-true figures."""
    if result.interrupted:
        raise SystemExit(result.exit_code)


def _from_run(engine: Engine, folder: Path, seed: int) -> Engine:
    return Engine.from_pretrained(folder / "pretrain", head="sequence_classification", seed=seed)


def _from_nothing(engine: Engine, plan: DemoPlan, seed: int) -> Engine:
    """The same architecture and tokenizer with random weights."""
    tokenizer = engine.tokenizer
    return Engine.from_scratch("bert", size=plan.size, tokenizer=tokenizer, overrides=plan.overrides, seed=seed)


def _finetune(
    plan: DemoPlan, data: DemoData, folder: Path, name: str, start: Callable[[int], Engine]
) -> tuple[Arm, Engine]:
    """Fine-tune once a seed; return the test metrics and the engine of the first seed."""
    arm, engines = Arm(name, []), []
    for seed in range(plan.seeds):
        engine = start(seed)
        result = engine.finetune(
            data.train,
            eval=data.dev,
            head={"sequence_classification": {"labels": data.labels}},
            epochs=plan.epochs,
            batch_size=plan.finetune_batch,
            learning_rate=plan.finetune_rate,
            max_length=plan.max_length,
            output_dir=folder / f"{name}-{seed}",
            checkpoint={"keep": 1},
            tracking={"progress": False, "report": seed == 0},
        )
        _stop_if_interrupted(result)
        engines.append(engine)
        arm.metrics.append(engine.evaluate(data.test))
    return arm, engines[0]


def _comparison(result: DemoResult, plan: DemoPlan, data: DemoData) -> Extra:
    """Pretrained against random weights, as a table with what must be known to read it."""
    rows = [
        [name, arm.text("accuracy"), arm.text("f1_macro"), ", ".join(f"{m['accuracy']:.3f}" for m in arm.metrics)]
        for name, arm in (("pretrained", result.pretrained), ("random", result.scratch))
    ]
    rows.append(["commonest label", f"{result.chance:.3f}", "", ""])
    gain = statistics.fmean(result.gains)
    spread = statistics.stdev(result.gains) if len(result.gains) > 1 else 0.0
    note = (
        f"Test accuracy on {len(data.test)} docstrings from files seen neither in pretraining nor in fine-tuning; "
        f"{len(data.train)} labelled examples, {len(data.labels)} classes, the same settings for both. Mean and "
        f"standard deviation over {plan.seeds} seeds (of first weights or head, data order and dropout; one "
        f"pretraining run). Pretraining changed accuracy by {gain:+.3f} ± {spread:.3f}. Docstrings that name their "
        "package are left in."
    )
    header = ("starting weights", "accuracy", "macro F1", "accuracy of each seed")
    return Extra("What pretraining gained", note, header, rows)


def _rich_table(extra: Extra) -> Table:
    table = Table(title=extra.title, title_justify="left")
    for i, name in enumerate(extra.header):
        table.add_column(name, justify="right" if i else "left")
    for row in extra.rows:
        table.add_row(*row)
    return table


def _data_table(data: DemoData) -> Table:
    table = Table("what", "rows", "characters")
    parts = {
        "pretraining documents": data.documents,
        "held out from pretraining": data.held_out_documents,
        "labelled, training": [row["text"] for row in data.train],
        "labelled, development": [row["text"] for row in data.dev],
        "labelled, test": [row["text"] for row in data.test],
    }
    for name, texts in parts.items():
        table.add_row(name, f"{len(texts):,}", f"{sum(map(len, texts)):,}")
    table.caption = "classes: " + ", ".join(data.labels)
    return table


def _predictions(engine: Engine, rows: list[Row], count: int = 5) -> Table:
    chosen = rows[:: max(len(rows) // count, 1)][:count]
    table = Table("docstring", "from", "prediction", "probability")
    for row, prediction in zip(chosen, engine.predict([row["text"] for row in chosen]), strict=True):
        first = " ".join(row["text"].split())
        probability = "" if prediction.score is None else f"{prediction.score:.2f}"
        table.add_row(first[:60] + ("..." if len(first) > 60 else ""), row["label"], str(prediction.label), probability)
    return table
