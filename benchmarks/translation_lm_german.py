"""Does translation_lm read the other language? German words masked, with their English sentence beside them and alone.

A BERT is trained by translation_lm on aligned captions, English first, tokens masked in both. On held-out pairs the
same German tokens are then masked three times: beside the English sentence, beside that of another pair, and alone,
with the positions and language ids of training. What the right sentence adds is what the model reads off it::

    python benchmarks/translation_lm_german.py --data multi30k --output runs/tlm [--steps 4000] [--learning-rate 1e-3]

The same command goes on where a run was stopped. ``--data`` holds train.en.gz, train.de.gz and the same of val and of
test_2016_flickr.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import RESULTS, machine, machine_line

from tunecore import Engine

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HELD_OUT = ("val", "test_2016_flickr")


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the parallel files")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=80, help="tokens of a pair; few are longer")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--overrides", type=json.loads, default={}, help="fields of the model's config, JSON")
    parser.add_argument("--options", type=json.loads, default={}, help='options of the run, JSON: {"warmup": 0.1}')
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    return args


def pretrain(args: argparse.Namespace) -> Path:
    """Train, or go on with, the model; its folder."""
    run = Path(args.output)
    if (run / "final").exists():
        return run / "final"
    folder = Path(args.data)
    engine = Engine.from_scratch(
        "bert", size=args.size, vocab_size=args.vocab_size, max_length=args.max_length, seed=args.seed,
        overrides={**NO_DROPOUT, **args.overrides},
    )  # fmt: skip
    every = max(1, args.steps // 10)
    chosen = {
        "steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate,
        "evaluation": {"every": every}, **args.options,
    }  # fmt: skip
    result = engine.pretrain(
        str(folder / "train.{en,de}.gz"), eval=str(folder / "val.{en,de}.gz"), objectives={"translation_lm": 1.0},
        output_dir=str(run), threads=args.threads, seed=args.seed, **chosen,
    )  # fmt: skip
    if result.interrupted:
        sys.exit("stopped; the same command goes on")
    return run / "final"


def rotated(folder: Path, name: str, where: Path) -> str:
    """The pairs of ``name``, each German sentence beside the English one of the pair before it."""
    for language in ("en", "de"):
        with gzip.open(folder / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
        moved = lines[-1:] + lines[:-1] if language == "en" else lines
        with gzip.open(where / f"{name}.{language}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(moved) + "\n")
    return str(where / f"{name}.{{en,de}}.gz")


def german(args: argparse.Namespace, model: Path, data: str, texts: str) -> dict[str, float]:
    """Loss and accuracy at masked German tokens; the same tokens whatever stands beside them."""
    objective = {"translation_lm": {"texts": texts, "masked": "second"}}
    engine = Engine.from_pretrained(model, objectives=objective, max_length=args.max_length, seed=args.seed)
    found = engine.evaluate(data, progress=False)
    return {"loss": found["loss/translation_lm"], "accuracy": found["accuracy/translation_lm"]}


def most_frequent(args: argparse.Namespace, model: Path) -> float:
    """The share of held-out German tokens that the most frequent one of the training text is."""
    tokenizer = Engine.from_pretrained(model).tokenizer

    def count(name: str) -> Counter[int]:
        with gzip.open(Path(args.data) / f"{name}.de.gz", "rt", encoding="utf-8") as file:
            encoded = tokenizer(file.read().splitlines(), add_special_tokens=False)["input_ids"]
        return Counter(token for ids in encoded for token in ids)

    (best, _), held_out = count("train").most_common(1)[0], count(HELD_OUT[-1])
    return held_out[best] / held_out.total()


def main(given: list[str] | None = None) -> None:
    args = parsed(given)
    model = pretrain(args)
    folder = Path(args.data)
    found: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as temporary:
        for name in HELD_OUT:
            data = str(folder / f"{name}.{{en,de}}.gz")
            other = rotated(folder, name, Path(temporary))
            found[name] = {
                "its English": german(args, model, data, "both"),
                "another English": german(args, model, other, "both"),
                "alone": german(args, model, data, "second"),
            }
    frequent = most_frequent(args, model)
    print("| held-out pairs | German masked words beside | loss | accuracy |\n| --- | --- | ---: | ---: |")
    for name, ways in found.items():
        for way, figures in ways.items():
            print(f"| {name} | {way} | {figures['loss']:.3f} | {figures['accuracy']:.4f} |")
    print(f"\nthe most frequent token alone: {frequent:.4f}; {args.steps:,} steps of {args.batch_size} pairs")
    print(machine_line())
    with open(RESULTS, "a", encoding="utf-8") as file:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "output")}
        row = {"time": stamp, "benchmark": "translation_lm_german", "found": found, "most_frequent": frequent}
        file.write(json.dumps({**row, "settings": settings, **machine()}) + "\n")


if __name__ == "__main__":
    main()
