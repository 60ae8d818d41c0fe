"""Packed and with swapped modules it computes what peft computes on the plain model, padded: losses and gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import peft
import pytest
import torch
from tunecore_peft.lora import Lora, LoraOptions
from tunecore_peft.peft_strategy import Peft, PeftOptions

from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.fused import KernelConv1D, KernelLinear
from tunecore.models.loading import enable_gradient_checkpointing, seeded
from tunecore.ops import _native
from tunecore.testing import make_model, make_tokenizer, tiny_records
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

LORA = {"r": 4, "alpha": 8.0}
CASES = {
    "bert, query and value": ("bert", Lora(LoraOptions(**LORA)), peft.LoraConfig(r=4, lora_alpha=8)),
    "bert, all": (
        "bert", Lora(LoraOptions(target_modules=("all-linear",), **LORA)),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["pooler.dense", "classifier"]),
    ),
    "bert, dora": ("bert", Lora(LoraOptions(use_dora=True, **LORA)), peft.LoraConfig(r=4, lora_alpha=8, use_dora=True)),
    "bert, ia3": ("bert", Peft(PeftOptions(type="ia3")), peft.IA3Config()),
    "gpt2, all": (
        "gpt2", Lora(LoraOptions(target_modules=("c_attn", "c_fc", "c_proj"), **LORA)),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True),
    ),
}  # fmt: skip


def both(family, strategy, config, checkpointing=False):
    """Our unit with the strategy's adapters, and peft's model of the same weights, neither at its start."""
    tokenizer, head = make_tokenizer(family), SequenceClassification(SequenceClassificationOptions())
    records = tiny_records()
    facts = head.prepare(records)
    head.load(facts)
    model = make_model([head.name], tokenizer, family, {"id2label": dict(enumerate(facts["labels"]))})
    model.config.pad_token_id = tokenizer.pad_token_id
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    unit = TrainUnit(model, FAMILIES[family], [Task(head.name, head, None, 1.0)]).eval()
    with seeded(0):
        unit.replace_model(strategy.prepare(model, FAMILIES[family]))
    theirs = peft.get_peft_model(plain, config).eval()
    if checkpointing:
        enable_gradient_checkpointing(model)
        unit.train()
    matched = {name.removeprefix("base_model.model."): p for name, p in theirs.named_parameters()}
    with torch.no_grad(), seeded(1):
        for name, parameter in model.named_parameters():
            if name not in matched:
                raise AssertionError(f"peft has no {name}")
            if matched[name].requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
            matched[name].copy_(parameter)
    rows = TaskRows(records, head, tokenizer, 32)
    examples = [e for row in range(len(rows)) for e in rows.examples(row, 0, Progress(0, 1, 0.0, 1.0))]
    return unit, theirs, matched, examples, tokenizer


def loss_of(unit, examples):
    (batch,) = pack(examples, max_tokens=4096, position_offset=0, pad_id=0)
    (loss,) = unit(batch).values()
    return loss.total


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_peft_s(case):
    unit, theirs, matched, examples, tokenizer = both(*CASES[case])
    total = loss_of(unit, examples)
    longest = max(len(e) for e in examples)
    ids = torch.full((len(examples), longest), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example)], mask[row, : len(example)] = torch.from_numpy(example.input_ids), 1
    labels = torch.tensor([int(e.targets["sequence_classification"].labels[0]) for e in examples])
    wanted = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss * len(examples)
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    total.backward()
    wanted.backward()
    adapters = 0
    for name, parameter in unit.model.named_parameters():
        if matched[name].requires_grad:
            torch.testing.assert_close(parameter.grad, matched[name].grad, rtol=2e-4, atol=2e-5, msg=name)
            adapters += float(parameter.grad.norm()) > 0
    assert adapters >= 4


@pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
def test_what_stands_below_an_adapter_runs_on_our_ops():
    unit, *_ = both(*CASES["bert, all"])
    attention = unit.model.bert.encoder.layer[0].attention.self
    assert type(attention.query.base_layer) is KernelLinear
    assert type(attention.query.lora_A["default"]) is KernelLinear
    unit, *_ = both(*CASES["gpt2, all"])
    assert type(unit.model.transformer.h[0].mlp.c_fc.base_layer) is KernelConv1D


def test_gradient_checkpointing_changes_nothing():
    """Dropout of the adapters is drawn by counter as all other dropout is, so what is recomputed draws it again."""
    gradients = []
    for checkpointing in (False, True):
        case = "bert", Lora(LoraOptions(dropout=0.4, **LORA)), peft.LoraConfig(r=4, lora_alpha=8)
        unit, _, matched, examples, _ = both(*case, checkpointing)
        (batch,) = pack(examples, max_tokens=4096, position_offset=0, pad_id=0)
        batch = replace(batch, layout=batch.layout._replace(rng_key=torch.tensor(17)))
        torch.manual_seed(checkpointing)
        (loss,) = unit.train()(batch).values()
        loss.total.backward()
        gradients.append({n: p.grad for n, p in unit.model.named_parameters() if matched[n].requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
