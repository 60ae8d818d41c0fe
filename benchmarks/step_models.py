"""The models of bench_train_step: their shapes, their random rows, their FLOPs, and a run of tunecore to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pluggy
import torch
from devices import CPU, CUDA
from transformers import PreTrainedModel

from tunecore import hookspecs
from tunecore.config import ModelConfig, RunConfig, TrainingConfig
from tunecore.data.packing import pack
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.registry import Registry
from tunecore.training.distributed import Ranks
from tunecore.training.optimizer import OPTIMIZERS
from tunecore.training.run import Run, make_run
from tunecore.training.schedule import SCHEDULES
from tunecore.training.step import train_step
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Example, PackedBatch, Targets

STEPS = 10**6
OBJECTIVES = {"masked_lm": lambda: MaskedLM(MaskedLMOptions()), "causal_lm": lambda: CausalLM(CausalLMOptions())}
ON_GPU_TOKENS = 2**17
"""Of a micro-batch on a GPU: all rows of a step are one."""


class Batches(NamedTuple):
    """What a step reads of the loader's batches; the loader needs more libraries than a machine with a GPU may have."""

    row_ids: tuple[int, ...]
    micro_batches: list[PackedBatch]
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepModel:
    """A model and the batch it is trained on."""

    title: str
    family: str
    size: str
    objective: str
    sequences: int
    lengths: tuple[int, int]
    """Shortest and longest sequence."""
    vocabulary: int
    batches: int = 1
    """Different batches that steps take in turn."""

    def build(self) -> PreTrainedModel:
        """Random weights, always the same."""
        return build_model(
            FAMILIES[self.family], frozenset({self.objective}), size=self.size, vocab_size=self.vocabulary,
            max_length=self.lengths[1], seed=0,
        )  # fmt: skip

    @cached_property
    def rows(self) -> list[list[Example]]:
        """Rows of each batch, of random tokens: 15 % of them targets of masked_lm, all but the first of causal_lm."""
        return [self._rows_of(batch) for batch in range(self.batches)]

    def _rows_of(self, batch: int) -> list[Example]:
        rng = np.random.default_rng(batch)
        rows = []
        for row_id, length in enumerate(rng.integers(self.lengths[0], self.lengths[1] + 1, self.sequences)):
            ids = rng.integers(1000, self.vocabulary, length).astype(np.int64)
            if self.objective == "causal_lm":
                targets = Targets(np.arange(length - 1, dtype=np.int64), ids[1:])
            else:
                index = np.sort(rng.choice(length, max(1, round(0.15 * length)), replace=False)).astype(np.int64)
                targets = Targets(index, ids[index])
                ids = ids.copy()
                ids[index] = 103
            rows.append(Example(row_id, ids, targets={self.objective: targets}))
        return rows

    def pack(self, max_tokens: int, batch: int = 0) -> list[PackedBatch]:
        """The rows of a batch as micro-batches."""
        view = "causal" if self.objective == "causal_lm" else "encoder"
        return pack(self.rows[batch], max_tokens=max_tokens, position_offset=0, pad_id=0, view=view)

    def useful_of(self, batch: int) -> int:
        """Useful tokens of a step on a batch."""
        return sum(len(row) for row in self.rows[batch])

    @property
    def useful(self) -> float:
        """Useful tokens of a step, the mean over batches."""
        return sum(map(self.useful_of, range(self.batches))) / self.batches

    def flops(self, model: PreTrainedModel) -> float:
        """FLOPs of the products of one step on useful tokens, the mean over batches: 6 a weight and token, attention's
        two products (half of them where it is causal), the head at targets.
        """
        config, rows = model.config, [row for batch in self.rows for row in batch]
        width, layers = config.hidden_size, config.num_hidden_layers
        inner = getattr(config, "intermediate_size", None) or 4 * width
        causal = self.objective == "causal_lm"
        attention = sum(len(row) ** 2 for row in rows) * (width if causal else 2 * width)
        head = width * self.vocabulary + (0 if causal else width * width)
        per_layer = sum(map(len, rows)) * (4 * width * width + 2 * width * inner)
        targets = sum(row.num_targets[self.objective] for row in rows)
        return 6 * (layers * (per_layer + attention) + head * targets) / self.batches


MODELS = {
    "mini": StepModel("BERT-mini", "bert", "mini", "masked_lm", 32, (32, 128), 30522),
    "base": StepModel("BERT-base", "bert", "base", "masked_lm", 16, (32, 128), 30522),
    "gpt2": StepModel("GPT-2", "gpt2", "base", "causal_lm", 4, (64, 256), 50257),
    "tiny": StepModel("BERT-tiny", "bert", "tiny", "masked_lm", 4, (32, 128), 2000),
}


MODELS_ON_GPU = {
    "base": replace(MODELS["base"], sequences=64, lengths=(32, 512)),
    "gpt2": replace(MODELS["gpt2"], sequences=16, lengths=(128, 1024)),
    "tiny": MODELS["tiny"],
}
"""The same with rows that fill a GPU."""


def _registry() -> Registry:
    """The built-in optimizers and schedules: plugins, and what the other built-ins import, are of no use to a step."""
    made = Registry()
    for kind, entries in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        for name, (factory, options) in entries.items():
            made.add(kind, name, factory, options, "benchmark")
    return made


def make_training(
    model: StepModel, precision: str, folder: str, device: str = CPU
) -> tuple[Run, Callable[[], int]]:
    """A run of tunecore, and a call that makes one step of it, packing included, and returns its useful tokens."""
    family, hooks = FAMILIES[model.family], pluggy.PluginManager(hookspecs.PROJECT)
    hooks.add_hookspecs(hookspecs)
    training = TrainingConfig(steps=STEPS, learning_rate=1e-4, precision=precision)
    if device == CUDA:
        training = replace(training, max_tokens=ON_GPU_TOKENS)
    config = RunConfig(
        output_dir=folder, model=ModelConfig(family=model.family), objectives={model.objective: 1.0}, training=training
    )
    unit = TrainUnit(model.build(), family, [Task(model.objective, OBJECTIVES[model.objective](), None, 1.0)])
    run = make_run(
        config, unit, tokenizer=None, registry=_registry(), hooks=hooks.hook, total_steps=STEPS, steps_per_epoch=STEPS,
        ranks=Ranks(device=torch.device(device)),
    )  # fmt: skip
    unit.train()
    row_ids, turn = tuple(range(model.sequences)), cycle(range(model.batches))

    def once() -> int:
        batch = next(turn)
        train_step(run, Batches(row_ids, model.pack(config.training.max_tokens, batch)))
        return model.useful_of(batch)

    return run, once
