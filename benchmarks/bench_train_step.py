"""Training step: tunecore against transformers' eager step, in turn, on the same masked rows.

Sequences of 32 to 128 tokens, dropout 0.1, one optimizer step a round (forward, backward, clipping, AdamW). The peers
get the same rows padded to the longest of the batch: fp32 and bf16 autocast, eager and sdpa attention. Each peer lives
in a process of its own, with the memory allocator as it comes, and "tuned": with freed memory kept, as tunecore sets
it. The limit is GEMM FLOPs of the useful tokens (head at target rows only, attention included) over the fp32 or bf16
GEMM peak measured in the same run.

    python benchmarks/bench_train_step.py [--model base|mini] [--pairs 5] [--precision auto|fp32|bf16]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from common import alternate, in_own_process, table, timed_rate
from peer import PeerStep, padded
from torch import nn
from transformers import PreTrainedModel

from tunecore.config import ModelConfig, PluginsConfig, RunConfig, TrainingConfig
from tunecore.data.loader import StepBatches
from tunecore.data.packing import pack
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.ops._native import tune_allocator
from tunecore.plugins import load_plugins
from tunecore.training.precision import weight_dtype
from tunecore.training.run import make_run
from tunecore.training.step import train_step
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Example, Targets

SEQUENCES = {"base": 16, "mini": 32}
VOCABULARY = 30522


def examples(count: int, seed: int) -> list[Example]:
    """Rows of 32..128 random tokens, 15 % of them targets."""
    rng = np.random.default_rng(seed)
    rows = []
    for row_id, length in enumerate(rng.integers(32, 129, count)):
        ids = rng.integers(1000, VOCABULARY, length)
        index = np.sort(rng.choice(length, max(1, round(0.15 * length)), replace=False))
        targets = Targets(index.astype(np.int64), ids[index].astype(np.int64))
        masked = ids.copy()
        masked[index] = 103
        rows.append(Example(row_id, masked.astype(np.int64), targets={"masked_lm": targets}))
    return rows


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of torch.mm 4096 x 3072 x 768, the best of five."""
    a, b = torch.randn(4096, 768).to(dtype), torch.randn(768, 3072).to(dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 4096 * 768 * 3072 / (time.perf_counter() - start))
    return best


def step_flops(model: nn.Module, rows: list[Example]) -> float:
    """GEMM FLOPs of one step on useful tokens: 6 a weight and token, attention's two products, the head at targets."""
    config = model.config
    width, layers = config.hidden_size, config.num_hidden_layers
    tokens = sum(len(row) for row in rows)
    targets = sum(row.num_targets["masked_lm"] for row in rows)
    per_layer = 4 * width * width + 2 * width * config.intermediate_size
    attention = sum(len(row) ** 2 for row in rows) * 2 * width
    return 6 * (tokens * layers * per_layer + layers * attention + targets * (width * width + width * VOCABULARY))


def build(size: str) -> PreTrainedModel:
    return build_model(
        FAMILIES["bert"], frozenset({"masked_lm"}), size=size, vocab_size=VOCABULARY, max_length=128, seed=0
    )


def make_peer(name: str, size: str, threads: int, seconds: float) -> Callable[[], float]:
    """A transformers model, named "attention dtype [tuned]"; its figure is useful tokens per second."""
    torch.set_num_threads(threads)
    attention, dtype, *tuned = name.split()
    if tuned:
        tune_allocator()
    rows, model = examples(SEQUENCES[size], seed=0), build(size)
    model.set_attn_implementation(attention)
    step = PeerStep(model, 1e-4, autocast=dtype == "bf16")
    batch = padded(pack(rows, max_tokens=1 << 20, position_offset=0, pad_id=0), 0)
    useful = sum(len(row) for row in rows)

    def once() -> int:
        step(batch)
        return useful

    return lambda: timed_rate(once, seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SEQUENCES), default="mini")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of one contestant's turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", default="sdpa fp32,eager bf16,sdpa bf16,eager bf16 tuned", help="comma-separated")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_allocator()
    rows = examples(SEQUENCES[args.model], seed=0)
    useful = sum(len(row) for row in rows)
    family, plugins = FAMILIES["bert"], load_plugins(PluginsConfig(load=False))
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            output_dir=folder, model=ModelConfig(family="bert"), objectives={"masked_lm": 1.0},
            training=TrainingConfig(steps=10**6, learning_rate=1e-4, precision=args.precision),
        )  # fmt: skip
        objective = plugins.registry.create("objective", "masked_lm")
        unit = TrainUnit(build(args.model), family, [Task("masked_lm", objective, None, 1.0)])
        run = make_run(config, unit, tokenizer=None, registry=plugins.registry, hooks=plugins.hooks,
                       total_steps=10**6, steps_per_epoch=10**6)  # fmt: skip
        unit.train()

        def once() -> int:
            batches = pack(rows, max_tokens=config.training.max_tokens, position_offset=0, pad_id=0)
            train_step(run, StepBatches(run.step, 0, tuple(range(len(rows))), batches))
            return useful

        contestants = {f"tunecore {args.precision}": lambda: timed_rate(once, args.seconds, 1)}
        for name in filter(None, args.peers.split(",")):
            contestants[f"transformers {name}"] = in_own_process(
                make_peer, name, args.model, args.threads, args.seconds
            )
        figures = alternate(contestants, args.pairs)
    dtype = weight_dtype(args.precision, torch.device("cpu"))
    limit = gemm_peak(dtype) / step_flops(unit.model, rows) * useful
    table(f"BERT-{args.model} training step, {len(rows)} sequences, {useful} useful tokens", figures,
          f"tunecore {args.precision}")  # fmt: skip
    share = np.median(figures[f"tunecore {args.precision}"]) / limit
    print(f"limit by GEMM FLOPs over the {dtype} peak: {limit:,.0f} useful tokens/s; tunecore is at {share:.0%}")


if __name__ == "__main__":
    main()
