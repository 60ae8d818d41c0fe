"""The arms of compare_objectives.py and what is done with each: pretrained, measured, fine-tuned; all of it resumable.

An arm is a folder: ``run`` (the pretraining run), ``sst2-...`` (fine-tuning runs) and ``figures.json``, which holds
what is known so far, with the settings it was made with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from tunecore import Engine
from tunecore.data.sources import expand_paths, read_records
from tunecore.data.streams import PhiloxStream
from tunecore.data.tokenizer import load_tokenizer
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model, save_model

FIGURES, TIMING = "figures.json", "timing.json"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Arm(NamedTuple):
    """One way of pretraining; none is a model with random weights."""

    family: str
    objectives: Mapping[str, Any]


ARMS: Mapping[str, Arm] = {
    "random": Arm("bert", {}),
    "masked_lm": Arm("bert", {"masked_lm": 1.0}),
    "next_sentence": Arm("bert", {"masked_lm": 1.0, "next_sentence": 1.0}),
    "prefix_lm": Arm("bert", {"prefix_lm": 1.0}),
    "phrase_masked_lm": Arm("bert", {"phrase_masked_lm": 1.0}),
    "electra": Arm("electra", {"replaced_token_detection": 1.0}),
}
PAIR = ("sentence_good", "sentence_bad")
TIMED = ("masked_lm", "electra")
"""The arms that get equal time rather than equal steps."""


def divided(text: str, count: int) -> tuple[list[str], list[str]]:
    """(training files, held-out files): ``count`` of the files of ``text``, evenly spread, are held out."""
    files = expand_paths([text])
    if len(files) <= count:
        sys.exit(f"{text} holds {len(files)} files; more than {count} are needed to hold {count} out")
    held_out = files[:: len(files) // count][:count]
    return [file for file in files if file not in held_out], held_out


def tokenizer_of(args: argparse.Namespace) -> str:
    """The WordPiece tokenizer all arms share, trained once on the training text."""
    folder = Path(args.output) / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        train, _ = divided(args.text, args.held_out)
        Engine.from_scratch("bert", text=train, vocab_size=args.vocab_size).tokenizer.save_pretrained(folder)
    return str(folder)


def settings_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What an arm is pretrained with; figures made with other settings are never mixed."""
    return {
        "size": args.size, "steps": steps_of(args, name), "batch_size": args.batch_size, "max_length": args.max_length,
        "learning_rate": args.learning_rate, "seed": args.seed, "vocab_size": args.vocab_size,
        "overrides": {**NO_DROPOUT, **args.overrides}, "options": args.options, "held_out": args.held_out,
    }  # fmt: skip


def steps_of(args: argparse.Namespace, name: str) -> int:
    """Equal steps, but of ELECTRA as many as fit into the time that masked_lm's take."""
    if name == "random":
        return 0
    if name != "electra":
        return int(args.steps)
    path = Path(args.output) / TIMING
    if not path.exists():
        sys.exit("time the steps first: --time, on a quiet machine")
    median = json.loads(path.read_text())["median"]
    return round(args.steps * median["masked_lm"] / median["electra"])


def pretrain(args: argparse.Namespace, name: str, folder: Path, **options: Any) -> bool:
    """Pretrain, or go on with, an arm; False where it was stopped before its end."""
    settings, (train, held_out) = settings_of(args, name), divided(args.text, args.held_out)
    engine = Engine.from_scratch(
        ARMS[name].family, size=args.size, tokenizer=tokenizer_of(args), max_length=args.max_length, seed=args.seed,
        overrides=settings["overrides"],
    )  # fmt: skip
    every = max(1, settings["steps"] // 10)
    chosen = {
        "steps": settings["steps"], "batch_size": args.batch_size, "learning_rate": args.learning_rate,
        "evaluation": {"every": every, "max_rows": 500}, "checkpoint": {"every": every}, **args.options, **options,
    }  # fmt: skip
    result = engine.pretrain(
        train, eval=held_out, objectives=ARMS[name].objectives, output_dir=str(folder), report=False, seed=args.seed,
        threads=args.threads, cache_dir=str(Path(args.output) / "cache"), **chosen,
    )  # fmt: skip
    return not result.interrupted


def time_steps(args: argparse.Namespace, rounds: int = 3) -> None:
    """Seconds of a step of the arms that get equal time, in turn, medians; nothing else should run meanwhile."""
    found: dict[str, list[float]] = {name: [] for name in TIMED}
    placeholder = {"median": dict.fromkeys(TIMED, 1.0)}  # so that ELECTRA's number of steps is known
    path = Path(args.output) / TIMING
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(placeholder))
    options = {"steps": args.time_steps, "evaluation": {"every": args.time_steps, "max_rows": args.batch_size}}
    tracking = {"every": 1, "progress": False}
    try:
        for _ in range(rounds):
            for name in TIMED:
                with TemporaryDirectory() as folder:
                    if not pretrain(args, name, Path(folder) / "run", tracking=tracking, **options):
                        sys.exit("the timing was stopped")
                    seconds = step_seconds(Path(folder) / "run")
                found[name] += seconds[len(seconds) // 10 :]  # the first ones meet every shape anew
    finally:
        path.unlink()
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    path.write_text(json.dumps({"median": median, "steps_timed": {name: len(found[name]) for name in TIMED}}, indent=1))
    print(f"{median}; a step of ELECTRA takes {median['electra'] / median['masked_lm']:.3f} of masked_lm's")


def step_seconds(run: Path) -> list[float]:
    """Seconds spent in the steps of a run, data and evaluation left out, one figure a logged row."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    phases = [{key: row[key] for key in row if key.startswith("time/") and key != "time/data"} for row in rows]
    return [sum(phase.values()) for phase in phases if phase]


def work(args: argparse.Namespace, name: str) -> None:
    """All that is not yet known of an arm."""
    arm = Path(args.output) / name
    path = arm / FIGURES
    figures = json.loads(path.read_text()) if path.exists() else {"settings": settings_of(args, name)}
    if figures["settings"] != settings_of(args, name):
        sys.exit(f"{path} was made with other settings: {figures['settings']}; give them, or another --output")

    def know(key: str, find: Callable[[], Any]) -> None:
        if key not in figures:
            figures[key] = find()
            arm.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=1))
            print(f"{name}: {key}: {figures[key]}", flush=True)

    model = arm / "run" / "final"
    if not model.exists():
        if name == "random":
            untrained(args, model)
        elif not pretrain(args, name, arm / "run"):
            sys.exit(f"{name} was stopped; the same command goes on")
    if name != "random":
        know("pretraining_seconds", lambda: sum(step_seconds(arm / "run")))
    words = generator(args, model, arm / "generator") if ARMS[name].family == "electra" else model
    know("masked_lm", lambda: held_out_loss(args, words))
    if args.blimp:
        know(f"blimp {args.blimp_per_uid}", lambda: blimp(args, words))
    for seed in range(args.sst2_seeds if args.sst2 else 0):
        key = f"sst2 {args.sst2_rows or 'all'} rows, {args.sst2_learning_rate:g}, seed {seed}"
        know(key, lambda seed=seed: sst2(args, model, arm, seed))  # type: ignore[misc]


def untrained(args: argparse.Namespace, folder: Path) -> None:
    """The weights the other arms of the family begin with."""
    tokenizer = load_tokenizer(tokenizer_of(args))
    model = build_model(
        FAMILIES["bert"], frozenset({"masked_lm"}), size=args.size, vocab_size=len(tokenizer), tokenizer=tokenizer,
        max_length=args.max_length, overrides={**NO_DROPOUT, **args.overrides}, seed=args.seed,
    )  # fmt: skip
    save_model(model, folder, tokenizer)


def generator(args: argparse.Namespace, model: Path, folder: Path) -> Path:
    """The generator of ELECTRA, which can be asked for tokens; the discriminator cannot."""
    if not (folder / "config.json").exists():
        Engine.from_pretrained(model, max_length=args.max_length).save(folder, part="generator")
    return folder


def held_out_loss(args: argparse.Namespace, model: Path) -> dict[str, float]:
    """Loss and accuracy of plain masked_lm at 15 % on the held-out files: the same masked rows for every arm."""
    _, held_out = divided(args.text, args.held_out)
    engine = Engine.from_pretrained(
        model, objectives={"masked_lm": 1.0}, max_length=args.max_length, seed=args.seed,
        cache_dir=str(Path(args.output) / "cache"),
    )  # fmt: skip
    found = engine.evaluate(held_out)
    return {"loss": found["loss/masked_lm"], "accuracy": found["accuracy/masked_lm"]}


def blimp(args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Accuracy on BLiMP by pseudo-log-likelihood, over pairs, over phenomena, and of each.

    A pair with a sentence longer than the arms' rows is left out, of all arms alike, for they share the tokenizer.
    """
    engine = Engine.from_pretrained(
        model, head={"minimal_pairs": {"max_per_group": args.blimp_per_uid}}, max_length=args.max_length
    )
    records = [dict(record.fields) for record in read_records(expand_paths([args.blimp]))]
    good, bad = (engine.tokenizer([row[name] for row in records])["input_ids"] for name in PAIR)
    fitting = [row for row, *ids in zip(records, good, bad, strict=True) if max(map(len, ids)) <= args.max_length]
    found = engine.evaluate(fitting)
    report = {uid: line["accuracy"] for uid, line in found["report"].items()}
    return {
        "accuracy": found["accuracy"], "accuracy_macro": found["accuracy_macro"],
        "left_out": len(records) - len(fitting), "report": report,
    }  # fmt: skip


def sst2(args: argparse.Namespace, model: Path, arm: Path, seed: int) -> float:
    """Accuracy on the 872 rows of GLUE's development set after an epoch of fine-tuning.

    ``args.sst2`` holds train.tsv and dev.tsv, together GLUE's training set, and test.tsv, GLUE's development set.
    """
    folder = Path(args.sst2)
    records = list(read_records([str(folder / "train.tsv"), str(folder / "dev.tsv")]))
    order = PhiloxStream(0, purpose="SST-2").permutation(len(records))
    chosen = np.sort(order[: args.sst2_rows or len(records)])
    rows = [dict(records[int(i)].fields) for i in chosen]
    engine = Engine.from_pretrained(
        model, head={"sequence_classification": {"text": "sentence"}}, max_length=args.max_length
    )
    result = engine.finetune(
        rows, eval=str(folder / "test.tsv"), epochs=1, batch_size=32, learning_rate=args.sst2_learning_rate, seed=seed,
        output_dir=str(arm / f"sst2-{args.sst2_rows}-{args.sst2_learning_rate:g}-{seed}"), report=False,
        threads=args.threads, evaluation={"every": len(rows)}, checkpoint={"keep": 1},
    )  # fmt: skip
    if result.interrupted:
        sys.exit("fine-tuning was stopped; the same command goes on")
    return float(engine.evaluate(str(folder / "test.tsv"))["accuracy"])
