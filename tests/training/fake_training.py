"""A model, a family, two objectives, a head and data of a few hundred bytes; also a program that trains them.

As a program: ``python fake_training.py RUN_DIR [key=value ...]`` trains (or resumes) and exits with the run's code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pluggy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tunecore import hookspecs
from tunecore.config import CheckpointConfig, EvaluationConfig, RunConfig, TrackingConfig, TrainingConfig
from tunecore.data.loader import StepLoader, eval_batches
from tunecore.data.order import steps_per_epoch
from tunecore.data.streams import PhiloxStream
from tunecore.registry import Registry
from tunecore.training.distributed import open_ranks
from tunecore.training.evaluate import evaluate
from tunecore.training.loop import train
from tunecore.training.optimizer import OPTIMIZERS
from tunecore.training.result import TrainResult
from tunecore.training.run import Run, make_run
from tunecore.training.schedule import SCHEDULES
from tunecore.training.state import make_saver, resume
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Example, LossSum, Targets

VOCAB, WIDTH, LENGTH = 23, 8, 12


class Body(nn.Module):
    """Embeddings, one mixing layer that never looks over a sequence's end, dropout, norm."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.places = nn.Embedding(LENGTH + 1, WIDTH)
        self.mix = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, input_ids, position_ids, packed, use_cache):
        assert use_cache is False
        x = self.words(input_ids) + self.places(position_ids)
        ends = packed.cu_seqlens.tolist()
        means = [x[:, a:b].mean(1, keepdim=True).expand(-1, b - a, -1) for a, b in pairwise(ends)]
        mixed = torch.tanh(self.mix(torch.cat([x, torch.cat(means, 1)], -1))) * self.scale.to(x.dtype)
        return SimpleNamespace(last_hidden_state=self.norm(self.dropout(mixed) + x))


class FakeModel(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = Body(dropout)
            self.decoder = nn.Linear(WIDTH, VOCAB)
        self.decoder.weight = self.body.words.weight  # tied


class FakeFamily:
    model_type, sequence_row, causal, token_types = "fake", "first", False, 0

    def backbone(self, model):
        return model.body

    def position_offset(self, model):
        return 1


class Words:
    """Token targets: name the word at a position."""

    name, view, losses = "words_lm", "encoder", ("words_lm",)

    def loss(self, forward, module, stream):
        targets = forward.batch.targets["words_lm"]
        logits = forward.model.decoder(forward.hidden().index_select(0, targets.index)).float_or_double()
        right = (logits.argmax(-1) == targets.labels).sum()
        total = F.cross_entropy(logits, targets.labels, reduction="sum")
        return {"words_lm": LossSum(total, len(targets.labels), right)}


class Parity:
    """Sequence targets, with a module of its own."""

    name, view, losses = "parity", "encoder", ("parity",)

    def logits(self, forward, module):
        return module(forward.sequence_rows()).float_or_double()

    def loss(self, forward, module, stream):
        targets = forward.batch.targets["parity"]
        logits = self.logits(forward, module).index_select(0, targets.index)
        return {"parity": LossSum(F.cross_entropy(logits, targets.labels, reduction="sum"), len(targets.labels))}


class ParityHead(Parity):
    default_metric = "accuracy"

    def prepare(self, records):
        return {}

    def load(self, facts):
        pass

    def examples(self, record, row_id, tokenizer, max_length, *, labelled):
        return []

    def build(self, model, family):
        return nn.Linear(WIDTH, 2)

    def predict(self, forward, module):
        return self.logits(forward, module)

    def decode(self, raw, record, row_id):
        raise NotImplementedError

    def metrics(self):
        return Accuracy()


class Accuracy:
    def __init__(self):
        self.right = self.seen = 0

    def update(self, raw, batch):
        labels = batch.targets.get("parity")
        if labels is None:
            return
        self.right += int((raw.argmax(-1)[labels.index] == labels.labels).sum())
        self.seen += len(labels.labels)

    def state(self):
        return [self.right, self.seen]

    def merge(self, others):
        for right, seen in others:
            self.right += right
            self.seen += seen

    def compute(self):
        return {"accuracy": self.right / self.seen, "confusion_matrix": [[self.seen]]}


def _float_or_double(x):
    return x if x.dtype == torch.float64 else x.float()


torch.Tensor.float_or_double = _float_or_double  # losses are fp32 under bf16 weights, float64 in exact tests


class FakeRows:
    """Row r has r % 4 word targets (so some have none) and, unless r % 5 == 0, a parity target."""

    views = ("encoder",)

    def __init__(self, count: int = 26, words: bool = True, parity: bool = True) -> None:
        self.count, self.words, self.parity = count, words, parity

    def __len__(self):
        return self.count

    def examples(self, row_id, epoch, progress, view):
        stream = PhiloxStream(7, epoch, row_id)
        length = int(stream.integers(3, LENGTH + 1, 1)[0])
        ids = stream.integers(1, VOCAB, length)
        targets = {}
        if self.words and row_id % 4:
            index = np.sort(stream.permutation(length)[: row_id % 4])
            targets["words_lm"] = Targets(index, ids[index])
        if self.parity and row_id % 5:
            targets["parity"] = Targets.of_sequence(int(ids.sum() % 2))
        return [Example(row_id, ids, targets=targets)]


def make_unit(seed: int = 0, dropout: float = 0.0, head: bool = False, words: bool = True) -> TrainUnit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        linear = nn.Linear(WIDTH, 2)
    if head:
        tasks = [Task("parity", ParityHead(), linear, 1.0)]
    else:
        tasks = [Task("parity", Parity(), linear, 0.5)]
        if words:
            tasks.insert(0, Task("words_lm", Words(), None, 2.0))
    return TrainUnit(FakeModel(seed, dropout), FakeFamily(), tasks)


def make_registry() -> Registry:
    registry = Registry()
    for name, (factory, options) in OPTIMIZERS.items():
        registry.add("optimizer", name, factory, options, "test")
    for name, (factory, options) in SCHEDULES.items():
        registry.add("schedule", name, factory, options, "test")
    return registry


def make_hooks(*plugins):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        manager.register(plugin)
    return manager.hook


def make_config(output_dir: Path | str = "run", **training) -> RunConfig:
    every = training.pop("evaluate_every", None)
    save_every = training.pop("save_every", None)
    keep = training.pop("keep", 2)
    patience = training.pop("patience", None)
    metric = training.pop("metric", None)
    log_every = training.pop("log_every", 10)
    return RunConfig(
        output_dir=str(output_dir),
        training=TrainingConfig(**{"learning_rate": 0.01, "batch_size": 8, "device": "cpu", **training}),
        evaluation=EvaluationConfig(every=every, patience=patience, metric=metric),
        checkpoint=CheckpointConfig(every=save_every, keep=keep),
        tracking=TrackingConfig(every=log_every),
    )


def make_fake_run(
    config: RunConfig, *, steps: int = 10, unit=None, hooks=None, strategies=(), ranks=None, rows=None
) -> Run:
    rows = rows or FakeRows()
    return make_run(
        config, unit or make_unit(), tokenizer=None, registry=make_registry(), hooks=hooks or make_hooks(),
        total_steps=steps, steps_per_epoch=steps_per_epoch(len(rows), config.training.batch_size),
        strategies=strategies, ranks=ranks,
    )  # fmt: skip


def make_loader(run: Run, rows=None, max_tokens: int = 40, accumulation: int = 1) -> StepLoader:
    return StepLoader(
        rows or FakeRows(), batch_size=run.config.training.batch_size, seed=run.seed, start_step=run.step,
        total_steps=run.total_steps, rank=run.rank, world_size=run.world_size, max_tokens=max_tokens,
        accumulation=accumulation, position_offset=1, pad_id=0,
    )  # fmt: skip


def write_model(folder: Path, tensors) -> None:
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name != "decoder.weight"}
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def fit(run: Run, *, rows=None, trackers=(), save=True, evaluation=True, **loader) -> TrainResult:
    """Resume, then train with evaluation and checkpoints."""
    resume(run)
    head = any(hasattr(t.component, "predict") for t in run.unit.tasks)
    held_out = FakeRows(11, words=not head)

    def measure():
        batches = eval_batches(
            held_out, max_tokens=64, position_offset=1, pad_id=0, rank=run.rank, world_size=run.world_size
        )
        return evaluate(run.unit, batches, Accuracy() if head else None, ranks=run.ranks, stop=run.stop)

    return train(
        run, make_loader(run, rows, **loader), evaluate=measure if evaluation else None,
        save=make_saver(run, write_model) if save else None, trackers=trackers,
    )  # fmt: skip


class Counter:
    """A plugin whose state belongs in checkpoints."""

    def __init__(self, delay: float = 0.0):
        self.batches, self.delay = 0, delay

    @hookspecs.hookimpl
    def tunecore_run_start(self, run):
        run.track("counter", self)

    @hookspecs.hookimpl
    def tunecore_batch_ready(self, run, batch):
        self.batches += 1
        if self.delay:
            time.sleep(self.delay)

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class KillAt:
    """Kills this process, as a power cut would, before its n-th call that brings bytes or names to the disk."""

    def __init__(self, call: int) -> None:
        self.left = call
        for name in ("fsync", "rename"):
            setattr(os, name, self.guard(getattr(os, name)))

    def guard(self, function):
        def guarded(*arguments):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*arguments)

        return guarded


def program(*arguments: str) -> None:
    """Run :func:`main` as a process of its own would."""
    sys.exit(main(list(arguments)))


def main(arguments: list[str]) -> int:
    options = {"steps": 30, "delay": 0.0, "precision": "fp32", "save_every": 3, "evaluate_every": 5, "kill_at": -1}
    for argument in arguments[1:]:
        key, value = argument.split("=")
        options[key] = type(options[key])(value)
    if options["kill_at"] >= 0:
        KillAt(options["kill_at"])
    with open_ranks("cpu", threads=1) as ranks:
        config = make_config(
            arguments[0], precision=options["precision"], save_every=options["save_every"],
            evaluate_every=options["evaluate_every"], threads=1,
        )  # fmt: skip
        run = make_fake_run(
            config, steps=options["steps"], unit=make_unit(dropout=0.1),
            hooks=make_hooks(Counter(options["delay"])), ranks=ranks,
        )  # fmt: skip
        result = fit(run)
    print(json.dumps({"steps": result.steps, "interrupted": result.interrupted, "metrics": result.metrics}))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
