"""What the runs of text-to-text models from scratch share: shape, steps for a number of minutes, a row of figures."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from common import RESULTS, machine, machine_line

from tunecore import Engine
from tunecore.training.result import TrainResult

CALIBRATION_STEPS = 12
SIZES = {"tiny": (128, 4, 4), "mini": (256, 4, 4), "small": (512, 4, 8)}
"""Name -> width, layers of each stack, heads."""


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options both runs have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the files")
    parser.add_argument("--output", help="folder of the run; the same command again resumes it (with --steps)")
    parser.add_argument("--minutes", type=float, help="choose the steps so that training takes about so long")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of --minutes")
    parser.add_argument("--size", choices=SIZES, help="tiny 128, mini 256, small 512 wide; 4 + 4 layers")
    parser.add_argument("--vocab", type=int, help="entries of the unigram vocabulary, shared by both sides")
    parser.add_argument("--batch", type=int, help="rows of an optimizer step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--beams", type=int, help="beams of the last evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; None is torch's own choice")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--record", action="store_true", help="append the figures to results.jsonl")
    parser.set_defaults(**defaults)
    return parser


def t5(args: argparse.Namespace, max_length: int, *, text: Any = None, tokenizer: Any = None) -> Engine:
    """A T5 of the 1.1 kind (gated GELU) with random weights, and a tokenizer trained on ``text`` where none is given.
    The output matrix is tied to the embeddings, as in 1.0: it would be most of a small model.
    """
    width, layers, heads = SIZES[args.size]
    overrides = {
        "d_model": width, "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads,
        "d_kv": width // heads, "d_ff": 2 * width, "feed_forward_proj": "gated-gelu", "dropout_rate": args.dropout,
    }  # fmt: skip
    return Engine.from_scratch(
        "t5", text=text, tokenizer=tokenizer, vocab_size=args.vocab, max_length=max_length, seed=args.seed,
        model={"family": "t5", "size": "tiny", "overrides": overrides},
    )  # fmt: skip


def train(args: argparse.Namespace, engine: Engine, train_data: Any, eval_data: Any, **settings: Any) -> float:
    """Train ``engine``, which ends with its best weights, and return the seconds the run took.

    Args:
        args: of the command line.
        engine: to train; steps are timed on copies of it.
        train_data, eval_data: files.
        settings: further options of the run, the head among them.
    """
    common = {
        "batch_size": args.batch, "learning_rate": args.learning_rate, "schedule": "linear", "warmup": 0.1,
        "threads": args.threads, "precision": args.precision, "weight_decay": 0.01, "max_tokens": 8192, **settings,
    }  # fmt: skip
    steps = args.steps or _steps(args, engine, train_data, common)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = engine.finetune(
            train_data, eval=eval_data, steps=steps, output_dir=args.output or folder,
            evaluation={"every": max(steps // 6, 1)}, **common,
        )  # fmt: skip
    _leave_where_stopped(result)
    return time.perf_counter() - begun


def _steps(args: argparse.Namespace, engine: Engine, train_data: Any, common: Mapping[str, Any]) -> int:
    """As many steps as ``--minutes`` give, by the time of the last steps of a short run: the first meet every shape
    for the first time.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        head = with_options(common["head"], generate=False)
        for count in (CALIBRATION_STEPS, 3 * CALIBRATION_STEPS):
            copy = Engine(engine.config, tokenizer=engine.tokenizer)
            begun = time.perf_counter()
            result = copy.finetune(
                train_data, steps=count, output_dir=f"{folder}/{count}",
                **{**common, "head": head, "eval_fraction": 0.0, "progress": False, "report": False},
            )  # fmt: skip
            _leave_where_stopped(result)
            seconds.append(time.perf_counter() - begun)
    per_step = max(seconds[1] - seconds[0], 1e-3) / (2 * CALIBRATION_STEPS)
    steps = max(int(args.minutes * 60 / per_step), 50)
    print(f"{per_step:.3f} s a step: {steps} steps for {args.minutes:g} minutes", flush=True)
    return steps


def _leave_where_stopped(result: TrainResult) -> None:
    """A run that a signal ended ends the program, too."""
    if result.interrupted:
        raise SystemExit(result.exit_code)


def with_options(head: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """A head with further options."""
    ((name, given),) = head.items()
    return {name: {**given, **options}}


def report(args: argparse.Namespace, title: str, figures: Mapping[str, Any]) -> None:
    """Print the figures, and append them where ``--record`` asks for it."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name:<28} {value:.2f}" if isinstance(value, float) else f"  {name:<28} {value}")
    print(machine_line())
    if args.record:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "output", "record")}
        row = {"time": stamp, "benchmark": title, "settings": settings, "figures": dict(figures), **machine()}
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
