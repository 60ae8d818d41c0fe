"""Training steps of BERT, GPT-2 and T5 on the CUDA kernels, emulated or on a GPU, against the same steps on the CPU.

Needs no more than torch, transformers, numpy, pluggy and pytest, to run on machines with nothing else.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pluggy
import pytest
import torch

import tunecore
from tunecore import hookspecs
from tunecore.config import RunConfig, TrainingConfig
from tunecore.data.packing import pack
from tunecore.models import fused
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.span_corruption import SpanCorruption, SpanCorruptionOptions
from tunecore.ops import _cuda, _native
from tunecore.registry import Registry
from tunecore.training.distributed import Ranks
from tunecore.training.optimizer import OPTIMIZERS
from tunecore.training.run import make_run
from tunecore.training.schedule import SCHEDULES
from tunecore.training.step import train_step
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Example, Targets

VOCAB, STEPS = 97, 3
OBJECTIVES = {
    "bert": MaskedLM(MaskedLMOptions()),
    "gpt2": CausalLM(CausalLMOptions()),
    "t5": SpanCorruption(SpanCorruptionOptions()),
}
SHAPES = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48},
    "gpt2": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "n_inner": 48},
    "t5": {"num_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 48},
}
RATES = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "t5": ("dropout_rate",),
}
CPU_SERVES = _native.serves


class Gradients:
    """A plugin that keeps the gradients of the first step."""

    def __init__(self):
        self.first = {}

    @tunecore.hookimpl
    def tunecore_before_optimizer_step(self, run):
        if not self.first:
            self.first = {name: g.detach().double().cpu() for name, g in run.optimizer.gradients().items()}


def examples(family):
    """Rows of 3 to 20 random tokens; half of those that predict have a target."""
    rng, name = np.random.default_rng(0), OBJECTIVES[family].name
    for row_id, length in enumerate((20, 3, 11, 17)):
        ids, decoder = rng.integers(5, VOCAB, length), rng.integers(5, VOCAB, 7)
        predicting = len(decoder) if family == "t5" else length
        index = np.sort(rng.choice(predicting, max(1, predicting // 2), replace=False)).astype(np.int64)
        targets = {name: Targets(index, rng.integers(5, VOCAB, len(index)))}
        more = {"decoder_input_ids": decoder} if family == "t5" else {}
        yield Example(row_id, ids, targets=targets, **more)


def registry():
    made = Registry()
    for kind, entries in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        for name, (factory, options) in entries.items():
            made.add(kind, name, factory, options, "test")
    return made


def train(family, precision, rate, device):
    """Losses and gradient norms of the steps, and the gradients of the first."""
    objective, recorder = OBJECTIVES[family], Gradients()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(recorder)
    model = build_model(
        FAMILIES[family], frozenset({objective.name}), size="tiny", vocab_size=VOCAB, max_length=24, seed=0,
        overrides={**SHAPES[family], **dict.fromkeys(RATES[family], rate)},
    )  # fmt: skip
    unit = TrainUnit(model, FAMILIES[family], [Task(objective.name, objective, None, 1.0)])
    training = TrainingConfig(steps=STEPS, learning_rate=1e-3, precision=precision, warmup=0.0)
    run = make_run(
        RunConfig(training=training), unit, tokenizer=None, registry=registry(), hooks=manager.hook,
        total_steps=STEPS, steps_per_epoch=STEPS, ranks=Ranks(device=torch.device(device)),
    )  # fmt: skip
    unit.train()
    batches = pack(list(examples(family)), max_tokens=4096, position_offset=0, pad_id=0, view=objective.view)
    steps = SimpleNamespace(micro_batches=batches, row_ids=(0, 1, 2, 3), views=(objective.view,))
    metrics = [train_step(run, steps) for _ in range(STEPS)]
    return [(m["loss"], m["grad_norm"]) for m in metrics], recorder.first


def on_cpu(monkeypatch, *given):
    """The steps on the CPU's own kernels, or without them on the references, whatever the emulation has put there."""
    with monkeypatch.context() as patched:
        patched.setattr(_native, "serves", CPU_SERVES)
        for name in ("_served", "_norm_served"):
            patched.setattr(fused, name, lambda x: True)
        patched.setattr(_cuda, "_DEVICES", ())
        return train(*given, "cpu")


def both(monkeypatch, family, precision, rate):
    """The steps on the CUDA kernels, and those of the CPU in float32."""
    with torch.device("cpu"):
        wanted = on_cpu(monkeypatch, family, "fp32", rate)
        return train(family, precision, rate, "cuda" if _cuda._DEVICES == ("cuda",) else "cpu"), wanted


def assert_same_steps(ours, wanted, tolerance, check_gradients):
    for got, right in zip(ours[0], wanted[0], strict=True):
        assert got == pytest.approx(right, rel=tolerance)
    check_gradients(ours[1], wanted[1], 10 * tolerance)


@pytest.mark.parametrize("family", list(OBJECTIVES))
def test_layers_on_the_kernels_train_as_on_the_cpu(calls, monkeypatch, assert_same_gradients, family):
    """With dropout: its masks are those of the CPU."""
    monkeypatch.setattr(fused, "ON_GPU", True)
    assert_same_steps(*both(monkeypatch, family, "fp32", 0.1), 1e-4, assert_same_gradients)
    entries = {"dropout", "embedding_backward", "masked_lm_loss", "adamw", "residual_norm_forward"}
    assert set(calls) >= entries | ({"bias_gelu_backward"} if family != "t5" else set())


@pytest.mark.parametrize("family", list(OBJECTIVES))
def test_by_default_a_gpu_keeps_the_layers_of_torch(calls, monkeypatch, assert_same_gradients, family):
    assert_same_steps(*both(monkeypatch, family, "fp32", 0.0), 1e-4, assert_same_gradients)
    assert set(calls) == {"masked_lm_loss", "adamw"}


@pytest.mark.parametrize("family", list(OBJECTIVES))
def test_bfloat16_trains_within_its_rounding(calls, monkeypatch, assert_same_gradients, family):
    monkeypatch.setattr(fused, "ON_GPU", True)
    assert_same_steps(*both(monkeypatch, family, "bf16", 0.0), 2e-2, assert_same_gradients)
    assert {"attention_forward", "attention_backward"} <= set(calls)
