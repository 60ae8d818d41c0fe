"""Fine-tuning side by side: the same rows, settings and seeds for tunecore and for the usual trainer of transformers.

SST-2 (accuracy), CoLA (Matthews correlation), MRPC (F1) and STS-B (Spearman, as regression). Both train all parameters
for the same epochs with AdamW, a linear schedule with warm-up, the same clipping, decay, batch, dtype and threads, and
take the model as it is after the last step; rows come in another order and dropout draws other numbers, by the seed.
The trainer has sdpa attention and dynamic padding, in a process of its own, and takes rows in random order, as it does
where nothing is said; --grouped has it group them by length, which is faster but cost it all it learns on CoLA
(docs/results/heads.md).
Measured are the metric on the evaluation rows, by one function for both, and useful tokens (the rows' own, unpadded) a
second of the training loop alone.

    python benchmarks/compare_finetune.py --model FOLDER --data FOLDER [--task cola,mrpc] [--seeds 3] [--rows 1000]

``--data`` holds sst2_glue/, cola/, mrpc/ and stsb/ as they are published. One row a contestant and task is appended to
results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import DTYPES, RESULTS, OwnProcess, machine, machine_line
from stopwatch import Stopwatch, TrainerStopwatch
from torch import Tensor
from torchmetrics.functional import f1_score, matthews_corrcoef, spearman_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.data.readers import TableOptions, TableSource
from tunecore.plugins import load_plugins

OURS, THEIRS = "tunecore", "transformers Trainer"
MAX_LENGTH = 128
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task: where its rows are, which columns are read, and what is measured."""

    title: str
    metric: str
    train: tuple[str, ...]
    eval: tuple[str, ...]
    texts: tuple[str, ...]
    label: str
    columns: tuple[str, ...] | None = None
    delimiter: str = "\t"
    quoting: bool = False
    labels: int = 2
    """1: a number is learnt."""

    def rows(self, folder: Path, names: Sequence[str], count: int | None) -> list[Row]:
        """{"text", ("text_pair"), "label"} of files, of ``count`` rows spread evenly over them (None: all)."""
        options = TableOptions(columns=self.columns, delimiter=self.delimiter, quoting=self.quoting)
        source = TableSource(options, "", "", False)
        read = [record.fields for name in names for record in source.read(str(folder / name))]
        found = [fields for fields in read if fields]  # a row that cannot be parsed has none
        if count is not None and count < len(found):
            found = [found[i * len(found) // count] for i in range(count)]
        number = int if self.labels > 1 else float
        columns = dict(zip(("text", "text_pair"), self.texts, strict=False))
        return [
            {**{ours: row[theirs] for ours, theirs in columns.items()}, "label": number(row[self.label])}
            for row in found
        ]


TASKS = {
    "sst2": Task(
        "SST-2", "accuracy", ("sst2_glue/train.tsv", "sst2_glue/dev.tsv"), ("sst2_glue/test.tsv",), ("sentence",),
        "label",
    ),
    "cola": Task(
        "CoLA", "mcc", ("cola/in_domain_train.tsv",), ("cola/in_domain_dev.tsv", "cola/out_of_domain_dev.tsv"),
        ("sentence",), "label", columns=("source", "label", "star", "sentence"),
    ),
    "mrpc": Task(
        "MRPC", "f1", ("mrpc/msr_paraphrase_train.txt",), ("mrpc/msr_paraphrase_test.txt",),
        ("#1 String", "#2 String"), "Quality",
    ),
    "stsb": Task(
        "STS-B", "spearman", ("stsb/stsb-en-train.csv",), ("stsb/stsb-en-dev.csv",), ("s1", "s2"), "score",
        columns=("s1", "s2", "score"), delimiter=",", quoting=True, labels=1,
    ),
}  # fmt: skip


class Settings(NamedTuple):
    """What both sides are given."""

    model: str
    epochs: float
    batch: int
    learning_rate: float
    dtype: str
    threads: int
    grouped: bool = False
    warmup: float = 0.06
    weight_decay: float = 0.01


class Outcome(NamedTuple):
    """One training of one side."""

    metric: float
    seconds: float
    """Of the training loop, first step to last."""


def measure(task: Task, outputs: Tensor, labels: Tensor) -> float:
    """The task's metric of logits or numbers [N, C] against labels [N]."""
    if task.metric == "spearman":
        return float(spearman_corrcoef(outputs[:, 0].float(), labels.float()))
    predicted = outputs.argmax(-1)
    if task.metric == "accuracy":
        return float((predicted == labels).float().mean())
    if task.metric == "f1":
        return float(f1_score(predicted, labels, task="binary"))
    return float(matthews_corrcoef(predicted, labels, task="binary"))


def ours(task: Task, train: list[Row], held_out: list[Row], settings: Settings, seed: int) -> Outcome:
    watch = Stopwatch()
    pair = {"text_pair": "text_pair"} if len(task.texts) == 2 else {}
    head = {"sequence_classification": {**pair, "labels": ["0", "1"]}} if task.labels > 1 else {"regression": pair}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(settings.model, head=head)
        engine.plugins = load_plugins(PluginsConfig(load=False), extra=[watch])
        engine.finetune(
            train, epochs=settings.epochs, batch_size=settings.batch, learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay, warmup=settings.warmup, precision=settings.dtype, seed=seed,
            max_length=MAX_LENGTH, threads=settings.threads, eval_fraction=0, output_dir=folder, progress=False,
            report=False, tracking={"every": 1000},
        )  # fmt: skip
        predictions = engine.predict(held_out)
    values = [[p.label] if task.labels == 1 else [p.scores["0"], p.scores["1"]] for p in predictions]
    labels = torch.tensor([row["label"] for row in held_out])
    return Outcome(measure(task, torch.tensor(values), labels), watch.last - watch.start)


def theirs(task: Task, train: list[Row], held_out: list[Row], settings: Settings, seed: int) -> Outcome:
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    watch = TrainerStopwatch()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch,
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, warmup_steps=settings.warmup,
            bf16=settings.dtype == "bf16", seed=seed, save_strategy="no", logging_strategy="no",
            train_sampling_strategy="group_by_length" if settings.grouped else "random",
            report_to=[], use_cpu=True, disable_tqdm=True, optim="adamw_torch_fused",
        )  # fmt: skip
        torch.manual_seed(seed)  # of the new layer's weights
        problem = {"problem_type": "regression"} if task.labels == 1 else {}
        model = AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=task.labels, **problem)
        trainer = Trainer(
            model, args, train_dataset=encoded(tokenizer, train), data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[watch],
        )  # fmt: skip
        trainer.train()
        outputs = trainer.predict(encoded(tokenizer, held_out)).predictions
    labels = torch.tensor([row["label"] for row in held_out])
    return Outcome(measure(task, torch.from_numpy(outputs), labels), watch.last - watch.start)


def encoded(tokenizer: Any, rows: Sequence[Row]) -> list[Row]:
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    ids = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=MAX_LENGTH)
    return [{key: ids[key][i] for key in ids} | {"labels": row["label"]} for i, row in enumerate(rows)]


def make_trainer(
    task: Task, train: list[Row], held_out: list[Row], settings: Settings, seeds: range
) -> Callable[[], Outcome]:
    """The peer in its own process: each turn is the next seed's."""
    torch.set_num_threads(settings.threads)
    waiting = iter(seeds)
    return lambda: theirs(task, train, held_out, settings, next(waiting))


class Compared(NamedTuple):
    """Both sides of one task, seed by seed."""

    task: Task
    outcomes: Mapping[str, Sequence[Outcome]]
    useful_tokens: float
    """Of one training."""

    def rates(self, name: str) -> list[float]:
        return [self.useful_tokens / outcome.seconds for outcome in self.outcomes[name]]

    @property
    def ratio(self) -> float:
        """The median of the seed-by-seed ratios of useful tokens a second, ours over theirs."""
        return statistics.median(a / b for a, b in zip(self.rates(OURS), self.rates(THEIRS), strict=True))


def compare(
    name: str, folder: Path, settings: Settings, seeds: range, train_rows: int | None, eval_rows: int | None
) -> Compared:
    task = TASKS[name]
    train, held_out = task.rows(folder, task.train, train_rows), task.rows(folder, task.eval, eval_rows)
    tokens = sum(len(row["input_ids"]) for row in encoded(AutoTokenizer.from_pretrained(settings.model), train))
    peer = OwnProcess(make_trainer, task, train, held_out, settings, seeds)
    outcomes: dict[str, list[Outcome]] = {OURS: [], THEIRS: []}
    for seed in seeds:
        outcomes[OURS].append(ours(task, train, held_out, settings, seed))
        outcomes[THEIRS].append(peer())
        print("  ", task.title, f"seed {seed}", {side: found[-1] for side, found in outcomes.items()}, flush=True)
    peer.close()
    return Compared(task, outcomes, tokens * settings.epochs)


def mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def table(compared: Sequence[Compared], settings: Settings) -> str:
    """Metrics with their spread over seeds, and useful tokens a second with their ratio."""
    lines = [
        f"| task | metric | {OURS} | {THEIRS} | difference | {OURS}, tokens/s | {THEIRS}, tokens/s | ours is |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in compared:
        metrics = {side: [outcome.metric for outcome in found] for side, found in one.outcomes.items()}
        apart = statistics.mean(metrics[OURS]) - statistics.mean(metrics[THEIRS])
        rates = [f"{statistics.median(one.rates(side)):,.0f}" for side in (OURS, THEIRS)]
        cells = [one.task.title, one.task.metric, *(mean_and_spread(metrics[side]) for side in (OURS, THEIRS))]
        lines.append(f"| {' | '.join([*cells, f'{apart:+.4f}', *rates, f'{one.ratio:.2f}x'])} |")
    given = ", ".join(f"{name} {value}" for name, value in settings._asdict().items() if name != "model")
    return "\n".join([*lines, "", given, machine_line()])


def record(compared: Sequence[Compared], settings: Settings, seeds: range) -> None:
    """Append one JSON row a contestant and task."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    given = {name: value for name, value in settings._asdict().items() if name != "model"}
    with open(RESULTS, "a", encoding="utf-8") as file:
        for one in compared:
            for side, found in one.outcomes.items():
                rates = one.rates(side)
                row = {
                    "time": stamp, "benchmark": f"compare_finetune {one.task.title}", "contestant": side,
                    "unit": "useful tokens/s", "figures": rates, "median": statistics.median(rates),
                    "ours_over_this": 1.0 if side == OURS else one.ratio, "metric": one.task.metric,
                    "metrics": [outcome.metric for outcome in found], "seeds": list(seeds), **given, **machine(),
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a BERT checkpoint (all-MiniLM-L6-v2)")
    parser.add_argument("--data", required=True, type=Path, help="folder with sst2_glue, cola, mrpc and stsb")
    parser.add_argument("--task", default=",".join(TASKS), help="tasks, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="to go on where an earlier run was stopped")
    parser.add_argument("--rows", type=int, help="training rows, spread over the file; all where left out")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--grouped", action="store_true", help="the trainer groups rows by length")
    parser.add_argument("--quick", action="store_true", help="few rows, one seed, nothing recorded: does it run?")
    args = parser.parse_args()
    args.task = args.task.split(",")
    unknown = set(args.task) - set(TASKS)
    if unknown:
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    return args


def main() -> None:
    args = options()
    if args.quick:
        args.rows, args.seeds, args.epochs = 64, 1, 1.0
    torch.set_num_threads(args.threads)
    settings = Settings(args.model, args.epochs, args.batch, args.learning_rate, args.dtype, args.threads, args.grouped)
    eval_rows = 64 if args.quick else None
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    compared = [compare(name, args.data, settings, seeds, args.rows, eval_rows) for name in args.task]
    if not args.quick:
        record(compared, settings, seeds)
    print(table(compared, settings))


if __name__ == "__main__":
    main()
