"""Fine-tuning strategies side by side on few examples: accuracy on SST-2 by strategy, number of examples and seed.

Each run fine-tunes the same checkpoint on a sample of the training file, which the seed draws (so every strategy sees
the same samples), for a fixed number of epochs, and is measured once, at its end: no strategy gains by a lucky
checkpoint. All have the same batch size, schedule and warm-up; those that move little of the model have a higher rate,
as in their papers.

    python benchmarks/compare_strategies.py --model FOLDER --data train.tsv --eval test.tsv [--examples 200 1000]

Every run is a JSON row in OUTPUT/strategies.jsonl, and a run that has a row there is not made again. At the end one
table is printed, and drawn as OUTPUT/strategies.png (matplotlib). ``--quick`` takes a tiny random model and the
sentences of the tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import machine, machine_line

from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.data.streams import PhiloxStream
from tunecore.plugins import load_plugins
from tunecore.testing import make_model, make_tokenizer, tiny_documents

BATCH, WARMUP = 16, 0.1
RATE, HIGH_RATE = 5e-5, 1e-3
ADAPTERS = "tunecore_peft"


class Contestant(NamedTuple):
    """A recipe: its strategies and its peak rate."""

    strategies: list[Any]
    learning_rate: float = RATE


CONTESTANTS = {
    "full": Contestant(["full"]),
    "head_only": Contestant(["head_only"], HIGH_RATE),
    "freeze_layers (embeddings, lower half)": Contestant([{"freeze_layers": {"layers": ["embeddings", "0-2"]}}]),
    "layerwise_lr_decay 0.8": Contestant([{"layerwise_lr_decay": {"decay": 0.8}}], 2 * RATE),
    "gradual_unfreezing": Contestant([{"gradual_unfreezing": {"every": None}}], 2 * RATE),
    "gradual + layerwise": Contestant(
        [{"gradual_unfreezing": {"every": None}}, {"layerwise_lr_decay": {"decay": 0.8}}], 2 * RATE
    ),
    "reinit_top_layers 1": Contestant([{"reinit_top_layers": {"layers": 1}}]),
    "head first, then all": Contestant(
        [{"mixed": {"phases": [
            {"until": 0.3, "strategies": ["head_only"]},
            {"strategies": [{"layerwise_lr_decay": {"decay": 0.8}}]},
        ]}}],
        2 * RATE,
    ),
    "lora": Contestant([{"lora": {"r": 8, "target_modules": ["all-linear"]}}], HIGH_RATE),
    "ia3": Contestant([{"peft": {"type": "ia3"}}], 5 * HIGH_RATE),
}  # fmt: skip
QUICK = ("full", "head_only", "gradual + layerwise")


def read(path: str | Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header: a text and a label."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    return [dict(zip(("text", "label"), line.rsplit("\t", 1), strict=True)) for line in lines]


def sample(rows: Sequence[Mapping[str, str]], count: int, seed: int) -> list[dict[str, str]]:
    """``count`` rows with as many of each label as of any other, drawn by the seed."""
    labels = sorted({row["label"] for row in rows})
    order = [dict(rows[i]) for i in PhiloxStream(seed, purpose="sample").permutation(len(rows))]
    by_label = [[row for row in order if row["label"] == label] for label in labels]
    return [row for group in zip(*by_label, strict=False) for row in group][:count]


def run(args: argparse.Namespace, name: str, count: int, seed: int) -> dict[str, Any]:
    """Fine-tune once and measure; the row of the run."""
    contestant = CONTESTANTS[name]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(args.model, head="sequence_classification")
        engine.plugins = load_plugins(PluginsConfig(load=False), extra=args.plugins)
        result = engine.finetune(
            sample(args.train, count, seed), eval=args.held_out, strategies=contestant.strategies, seed=seed,
            epochs=args.epochs, batch_size=min(BATCH, count), learning_rate=contestant.learning_rate, warmup=WARMUP,
            evaluation={"every": 10**9}, checkpoint={"every": 10**9}, output_dir=folder, progress=False, report=False,
        )  # fmt: skip
    accuracy = result.metrics["eval/accuracy"]
    return {
        "strategy": name, "examples": count, "seed": seed, "accuracy": accuracy, "loss": result.metrics["eval/loss"],
        "seconds": round(time.perf_counter() - begun, 1), "steps": result.steps, "epochs": args.epochs,
        "learning_rate": contestant.learning_rate, "model": Path(args.model).name, "rows_measured": len(args.held_out),
    }  # fmt: skip


def done(path: Path) -> list[dict[str, Any]]:
    """The rows of runs made before."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two runs the same run."""
    names = ("strategy", "examples", "seed", "epochs", "learning_rate", "model", "rows_measured")
    return tuple(row[name] for name in names)


def table(rows: Iterable[Mapping[str, Any]], strategies: Sequence[str], counts: Sequence[int]) -> str:
    """Mean and standard deviation of the accuracy over seeds, and the mean time of a run."""
    rows = list(rows)
    lines = [
        " | ".join(["| strategy", *(f"{count} examples | worst | seconds" for count in counts)]) + " |",
        "| --- |" + " ---: |" * (3 * len(counts)),
    ]
    for name in strategies:
        cells = [name]
        for count in counts:
            found = [row for row in rows if row["strategy"] == name and row["examples"] == count]
            values = [row["accuracy"] for row in found]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            mean_time = statistics.mean(row["seconds"] for row in found)
            cells += [f"{statistics.mean(values):.4f}{spread}", f"{min(values):.4f}", f"{mean_time:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Iterable[Mapping[str, Any]], strategies: Sequence[str], counts: Sequence[int], path: Path) -> None:
    """A panel for each number of examples: every seed a dot, their mean a stroke."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install 'tunecore[bench]' brings matplotlib")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(rows)
    height = 1.2 + 0.4 * len(strategies)
    figure, panels = plt.subplots(1, len(counts), figsize=(5 * len(counts) + 2, height), sharey=True, squeeze=False)
    for panel, count in zip(panels[0], counts, strict=True):
        values = [
            [row["accuracy"] for row in rows if row["strategy"] == name and row["examples"] == count]
            for name in strategies
        ]
        # Marks and no bars: the axis does not begin at 0.
        for place, points in enumerate(values):
            panel.scatter(points, [place] * len(points), s=14, color="#7f9dc0")
            panel.scatter([statistics.mean(points)], [place], s=220, color="#1f4e79", marker="|")
        panel.grid(axis="y", alpha=0.3)
        panel.set_xlim(max(0.0, min(map(min, values)) - 0.03), min(1.0, max(map(max, values)) + 0.02))
        panel.set_title(f"{count} examples")
        panel.set_xlabel("accuracy")
    panels[0][0].set_yticks(range(len(strategies)), strategies)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"plot: {path}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a BERT checkpoint (all-MiniLM-L6-v2)")
    parser.add_argument("--data", help="SST-2 train.tsv")
    parser.add_argument("--eval", help="SST-2 test.tsv (GLUE's dev set)")
    parser.add_argument("--examples", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--strategies", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--output", type=Path, default=Path("runs/strategies"), help="folder of rows and plot")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny model, few runs: does it run?")
    return parser.parse_args()


def tiny_world(args: argparse.Namespace, folder: Path) -> None:
    """A model without training and sentences that any machine has."""
    tokenizer = make_tokenizer()
    make_model(["masked_lm"], tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sentences = [sentence for text in tiny_documents() for sentence in text.split(". ")]
    rows = [{"text": text, "label": str(int("river" in text or "train" in text))} for text in sentences]
    args.model, args.train, args.held_out = str(folder), rows[::2], rows[1::2]
    args.examples, args.seeds, args.epochs, args.strategies = [8, 16], 2, 1, list(QUICK)


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    try:
        args.plugins = [importlib.import_module(ADAPTERS)]
    except ImportError:
        args.plugins = []
        print("lora and ia3 are left out: pip install ./plugins/tunecore-peft")
        args.strategies = [name for name in args.strategies if name not in ("lora", "ia3")]
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            tiny_world(args, Path(folder))
        elif args.model and args.data and args.eval:
            args.train, args.held_out = read(args.data), read(args.eval)
        else:
            print("left out: it needs --model, --data and --eval")
            return
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / "strategies.jsonl"
        rows = {key(row): row for row in done(path)} if not args.quick else {}
        facts, wanted = machine(), []
        for seed in range(args.seeds):  # seeds first: an interrupted comparison has whole rounds
            for count in args.examples:
                for name in args.strategies:
                    named = {
                        "strategy": name, "examples": count, "seed": seed, "epochs": args.epochs,
                        "learning_rate": CONTESTANTS[name].learning_rate, "model": Path(args.model).name,
                        "rows_measured": len(args.held_out),
                    }  # fmt: skip
                    if key(named) not in rows:
                        row = rows[key(named)] = run(args, name, count, seed)
                        with open(path, "a", encoding="utf-8") as file:
                            file.write(json.dumps({**row, **facts}) + "\n")
                        print(f"  {name}, {count} examples, seed {seed}: {row['accuracy']:.4f}", flush=True)
                    wanted.append(rows[key(named)])
    print(f"\n{args.seeds} seeds, {args.epochs} epochs, accuracy on {len(args.held_out)} rows\n")
    print(table(wanted, args.strategies, args.examples))
    print(f"\n{machine_line()}")
    draw(wanted, args.strategies, args.examples, args.output / "strategies.png")


if __name__ == "__main__":
    main()
