"""Fine-tuning speed: MiniLM on a slice of SST-2, tunecore against the usual trainer of transformers, in turn.

Both train the same rows with the same settings (batch 32, AdamW, linear schedule, dropout 0.1), in the same dtype and
threads. The trainer is at its usual best: sdpa attention, dynamic padding, batches grouped by length; it lives in a
process of its own, with the memory allocator as it comes and, "tuned", with freed memory kept, as tunecore sets it.
Timed is the training loop, first step to last: no loading, no evaluation, no saving. Useful tokens are the rows' own.

    python benchmarks/bench_finetune.py --model FOLDER --data train.tsv [--rows 640] [--pairs 5] [--dtype fp32]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import DTYPES, OwnProcess, alternate, arguments, parsed, ratios, record, table
from stopwatch import Stopwatch, TrainerStopwatch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.ops._native import tune_allocator
from tunecore.plugins import load_plugins

BATCH = 32


def read(path: str, count: int) -> list[dict[str, str]]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    # Spread over the file: neighbours in it share a review.
    chosen = lines[:: max(1, len(lines) // count)][:count]
    return [dict(zip(("text", "label"), line.rsplit("\t", 1), strict=True)) for line in chosen]


def ours(model: str, rows: list[dict[str, str]], dtype: str, useful: int) -> float:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(model, head="sequence_classification")
        engine.plugins = load_plugins(PluginsConfig(load=False), extra=[watch])
        engine.finetune(
            rows, epochs=1, batch_size=BATCH, learning_rate=5e-5, weight_decay=0.0, warmup=0, precision=dtype,
            eval_fraction=0, output_dir=folder, progress=False, report=False, tracking={"every": 1000},
        )  # fmt: skip
    return useful / (watch.last - watch.start)


def theirs(model: str, rows: list[dict[str, str]], dtype: str, useful: int) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = tokenizer([r["text"] for r in rows], truncation=True, max_length=128)
    data = [{k: encoded[k][i] for k in encoded} | {"labels": int(rows[i]["label"])} for i in range(len(rows))]
    watch = TrainerStopwatch()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=5e-5, bf16=dtype == "bf16",
            train_sampling_strategy="group_by_length", save_strategy="no", logging_strategy="no", report_to=[],
            use_cpu=True, disable_tqdm=True, optim="adamw_torch_fused",
        )  # fmt: skip
        peer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
        trainer = Trainer(
            peer, args, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[watch]
        )
        trainer.train()
    return useful / (watch.last - watch.start)


def make_trainer(
    model: str, rows: list[dict[str, str]], dtype: str, useful: int, threads: int, tuned: bool
) -> Callable[[], float]:
    torch.set_num_threads(threads)
    if tuned:
        tune_allocator()
    return lambda: theirs(model, rows, dtype, useful)


def main() -> None:
    parser = arguments(__doc__, seconds=0.0)
    parser.add_argument("--model", help="folder of a BERT checkpoint (all-MiniLM-L6-v2)")
    parser.add_argument("--data", help="SST-2 train.tsv")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    args = parsed(parser)
    if not (args.model and args.data):
        print("left out: it needs --model and --data")
        return
    if args.quick:
        args.rows = BATCH
    rows = read(args.data, args.rows)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    useful = sum(len(ids) for ids in tokenizer([r["text"] for r in rows], truncation=True, max_length=128)["input_ids"])
    settings = args.model, rows, args.dtype, useful
    tunecore, trainer = "tunecore", "transformers Trainer"
    peers = {
        trainer: OwnProcess(make_trainer, *settings, args.threads, False),
        f"{trainer}, tuned": OwnProcess(make_trainer, *settings, args.threads, True),
    }
    figures = alternate({tunecore: lambda: ours(*settings), **peers}, args.pairs)
    title, ratio = f"fine-tuning MiniLM on {len(rows)} rows of SST-2, {args.dtype}", ratios(figures, tunecore)
    if not args.quick:
        record(title, figures, ratio, "useful tokens/s")
    table(title, figures, ratio, tunecore)


if __name__ == "__main__":
    main()
