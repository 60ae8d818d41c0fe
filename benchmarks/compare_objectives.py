"""Pretraining objectives side by side: held-out loss, BLiMP, SST-2 after fine-tuning.

BERT with and without next_sentence, prefix_lm and phrase_masked_lm for the same number of steps, ELECTRA for the same
time, and random weights: one tokenizer, one seed, no dropout. One arm at a time; a command given again goes on where it
was stopped::

    python benchmarks/compare_objectives.py --text novels.zip --output runs/compare --time
    for arm in random masked_lm next_sentence prefix_lm phrase_masked_lm electra; do
        python benchmarks/compare_objectives.py --text novels.zip --sst2 sst2 --blimp BLiMP.zip --output runs/compare \
            --steps 10000 --arm $arm
    done
    python benchmarks/compare_objectives.py --output runs/compare --table

Of ELECTRA the generator answers the masked-LM loss and BLiMP, for the discriminator predicts no tokens; the
discriminator is what is fine-tuned.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, machine_line
from objective_arms import ARMS, FIGURES, TIMING, time_steps, work


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder of all arms")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--arm", choices=tuple(ARMS), action="append", help="pretrain, measure and fine-tune this")
    task.add_argument("--time", action="store_true", help="time the steps of masked_lm and ELECTRA, nothing else")
    task.add_argument("--table", action="store_true", help="print what is known and append it to results.jsonl")
    parser.add_argument("--text", help="text to pretrain on: a folder, archive or glob of several files")
    parser.add_argument("--held-out", type=int, default=2, help="files of it to measure on")
    parser.add_argument("--blimp", help="BLiMP.zip; none leaves it out")
    parser.add_argument("--blimp-per-uid", type=int, default=100, help="pairs of each phenomenon")
    parser.add_argument("--sst2", help="folder with train.tsv, dev.tsv and test.tsv; none leaves it out")
    parser.add_argument("--sst2-rows", type=int, default=20_000, help="rows to fine-tune on; 0 is all")
    parser.add_argument("--sst2-learning-rate", type=float, default=3e-4)
    parser.add_argument("--sst2-seeds", type=int, default=2)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--overrides", type=json.loads, default={}, help="fields of the model's config, JSON")
    parser.add_argument("--options", type=json.loads, default={}, help='options of the run, JSON: {"warmup": 0.1}')
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--time-steps", type=int, default=100, help="steps of each turn of --time")
    args = parser.parse_args(given)
    if not args.table and not args.text:
        parser.error("--text is needed")
    torch.set_num_threads(args.threads)
    return args


def row_of(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The cells of one arm; None is not known."""
    blimp = next((value for key, value in figures.items() if key.startswith("blimp")), None) or {}
    sst2 = [value for key, value in figures.items() if key.startswith("sst2")]
    masked = figures.get("masked_lm") or {}
    return {
        "arm": name,
        "objectives": " + ".join(ARMS[name].objectives) or "none (random weights)",
        "steps": figures["settings"]["steps"],
        "minutes": figures["pretraining_seconds"] / 60 if "pretraining_seconds" in figures else None,
        "masked_lm_loss": masked.get("loss"),
        "masked_lm_accuracy": masked.get("accuracy"),
        "blimp_pairs": blimp.get("accuracy"),
        "blimp_phenomena": blimp.get("accuracy_macro"),
        "sst2": statistics.mean(sst2) if sst2 else None,
        "sst2_runs": sst2,
    }


def table(args: argparse.Namespace) -> None:
    """Print the table of what is known, and append it as one JSON row."""
    output = Path(args.output)
    known = {name: json.loads(path.read_text()) for name in ARMS if (path := output / name / FIGURES).exists()}
    rows = [row_of(name, figures) for name, figures in known.items()]
    columns = {
        "objectives": "{}", "steps": "{:,}", "minutes": "{:.0f}", "masked_lm_loss": "{:.3f}",
        "masked_lm_accuracy": "{:.3f}", "blimp_pairs": "{:.4f}", "blimp_phenomena": "{:.4f}", "sst2": "{:.4f}",
    }  # fmt: skip
    print("| arm | objectives | steps | minutes | held-out loss | accuracy | BLiMP, pairs | phenomena | SST-2 |")
    print("| --- | --- |" + " ---: |" * (len(columns) - 1))
    for row in rows:
        cells = ["" if row[key] is None else form.format(row[key]) for key, form in columns.items()]
        print(f"| {' | '.join([row['arm'], *cells])} |")
    timing = json.loads((output / TIMING).read_text()) if (output / TIMING).exists() else None
    if timing:
        print(f"\nSeconds a step, timed in turn on a quiet machine: {timing['median']}")
    print(f"\n{machine_line()}")
    with open(RESULTS, "a", encoding="utf-8") as file:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        arms = {name: {**row_of(name, figures), "settings": figures["settings"]} for name, figures in known.items()}
        row = {"time": stamp, "benchmark": "compare_objectives", "arms": arms, "timing": timing, **machine()}
        file.write(json.dumps(row) + "\n")


def main(given: list[str] | None = None) -> None:
    args = parsed(given)
    if args.table:
        table(args)
    elif args.time:
        time_steps(args)
    else:
        for name in args.arm:
            work(args, name)


if __name__ == "__main__":
    main()
