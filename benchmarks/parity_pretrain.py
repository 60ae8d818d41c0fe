"""Loss curves: tunecore against plain transformers on the same model, rows, order and masks.

Both start from the same weights and see the same masked rows in the same order; transformers pads them and runs its
own forward, loss and AdamW. Without dropout the curves must agree to rounding; with dropout, which each draws for
itself, within noise.

    python benchmarks/parity_pretrain.py --text novels.zip [--steps 200] [--dropout 0.1]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path

import torch
from common import RESULTS, machine
from peer import PeerStep, padded

import tunecore
from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.plugins import load_plugins


class Shadow:
    """A plugin that feeds every step of a run to a plain transformers model as well."""

    def __init__(self):
        self.batches = []
        self.ours, self.theirs = [], []

    @tunecore.hookimpl
    def tunecore_model_built(self, model, config):
        peer = copy.deepcopy(model)
        peer.set_attn_implementation("sdpa")
        self.peer = PeerStep(peer, config.training.learning_rate)

    @tunecore.hookimpl
    def tunecore_batch_ready(self, run, batch):
        self.batches.append(batch)

    @tunecore.hookimpl
    def tunecore_step_end(self, run, metrics):
        for group in self.peer.optimizer.param_groups:
            group["lr"] = metrics["learning_rate"]
        torch.manual_seed(run.step)
        self.theirs.append(self.peer(padded(self.batches, run.tokenizer.pad_token_id)))
        self.ours.append(metrics["loss/masked_lm"])
        self.batches.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="text to pretrain on")
    parser.add_argument("--tokenizer", help="a trained tokenizer; None trains one on the text")
    parser.add_argument("--cache", help="folder for the tokenised text")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="ours; the peer is fp32")
    args = parser.parse_args()
    shadow = Shadow()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_scratch(
            "bert", size="mini", text=None if args.tokenizer else args.text, tokenizer=args.tokenizer, seed=1,
            overrides={"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout},
        )  # fmt: skip
        engine.plugins = load_plugins(PluginsConfig(load=False), extra=[shadow])
        engine.pretrain(
            args.text, objectives={"masked_lm": 1.0}, steps=args.steps, batch_size=args.batch_size, learning_rate=5e-4,
            output_dir=folder, cache_dir=args.cache, evaluation={"every": 10 * args.steps, "max_rows": 32},
            report=False, progress=False, precision=args.precision,
        )  # fmt: skip
    gaps = [a - b for a, b in zip(shadow.ours, shadow.theirs, strict=True)]
    print(f"| steps | tunecore | transformers | difference (dropout {args.dropout}) |\n| --- | ---: | ---: | ---: |")
    window = max(1, args.steps // 10)
    for start in range(0, len(shadow.ours), window):  # a cut run has fewer steps
        part = slice(start, start + window)
        a, b = statistics.mean(shadow.ours[part]), statistics.mean(shadow.theirs[part])
        print(f"| {start + 1}-{start + len(shadow.ours[part])} | {a:.4f} | {b:.4f} | {a - b:+.5f} |")
    print(f"\nlargest difference at a step {max(map(abs, gaps)):.2e}, mean {statistics.mean(gaps):+.2e}")
    row = {"benchmark": "parity_pretrain", "dropout": args.dropout, "precision": args.precision}
    row |= {"ours": shadow.ours, "theirs": shadow.theirs}
    with open(Path(RESULTS), "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, **machine()}) + "\n")


if __name__ == "__main__":
    main()
