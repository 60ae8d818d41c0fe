"""Heads that write texts in a whole model: loss and gradients are those of plain transformers, padded, labels -100."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tunecore.conformance import check_component
from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.heads.causal_generation import CausalGeneration, CausalGenerationOptions
from tunecore.heads.seq2seq import Seq2Seq, Seq2SeqOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.plugins import load_plugins
from tunecore.testing import make_model, make_tokenizer, tiny_documents
from tunecore.training.evaluate import evaluate
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress, Record

TEXTS = tiny_documents()
ROWS = [
    Record({"text": TEXTS[i][: 12 + 9 * i], "target": TEXTS[-1 - i][: 40 - 4 * i]}, "rows", i) for i in range(8)
]  # fmt: skip
NAMES = ("t5", "bart", "gpt2", "llama")


def head_of(name, **options):
    if FAMILIES[name].encoder_decoder:
        return Seq2Seq(Seq2SeqOptions(**options))
    return CausalGeneration(CausalGenerationOptions(template="{text}\n", completion="target", **options))


def built(name, **options):
    tokenizer, family, head = make_tokenizer(name), FAMILIES[name], head_of(name, **options)
    # A ReLU at 0 to the last bit would make one gradient of two, by the processor's rounding.
    smooth = {"feed_forward_proj": "gated-gelu"} if name == "t5" else None
    model = make_model([head.name, *head.uses], tokenizer, name, config=smooth)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # away from even logits, which no change of the input moves
            parameter.add_(torch.randn_like(parameter) * 0.15)
    rows = TaskRows(ROWS, head, tokenizer, 32, keep_records=True)
    examples = [e for row in range(len(rows)) for e in rows.examples(row, 0, Progress(0, 1, 0.0, 1.0))]
    unit = TrainUnit(model, family, [Task(head.name, head, head.build(model, family), 1.0)]).eval()
    return tokenizer, head, rows, examples, unit


def batches(unit, rows, examples, parts=1):
    offset = unit.family.position_offset(unit.model)
    return pack(
        examples, max_tokens=1 << 20, position_offset=offset, pad_id=0, min_micro_batches=parts, view=rows.views[0]
    )


def padded(sequences, value):
    found = np.full((len(sequences), max(map(len, sequences))), value)
    for row, sequence in enumerate(sequences):
        found[row, : len(sequence)] = sequence
    return torch.from_numpy(found)


def labels_of(example, head):
    """As transformers takes them: of a decoder alone aligned with its inputs, -100 where nothing is asked."""
    targets = example.targets[head.name]
    if example.decoder_input_ids is not None:
        return targets.labels
    labels = np.full(len(example), -100)
    labels[targets.index + 1] = targets.labels
    return labels


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_plain_transformers_on_padded_rows(name, tmp_path):
    tokenizer, head, rows, examples, unit = built(name)
    save_model(unit.model, tmp_path, tokenizer)
    auto = AutoModelForSeq2SeqLM if unit.family.encoder_decoder else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path, attn_implementation="eager").eval()
    (batch,) = batches(unit, rows, examples)
    ours = unit(batch)[head.name]
    (ours.total / ours.num_targets).backward()
    mask = padded([np.ones(len(e), np.int64) for e in examples], 0)
    labels = padded([labels_of(e, head) for e in examples], -100)
    theirs = plain(input_ids=padded([e.input_ids for e in examples], 0), attention_mask=mask, labels=labels)
    theirs.loss.backward()
    assert ours.num_targets == int((labels != -100).sum())
    assert (ours.total / ours.num_targets).item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    logits, wanted = theirs.logits, labels
    if not unit.family.encoder_decoder:
        logits, wanted = logits[:, :-1], labels[:, 1:]
    assert int(ours.num_correct) == int((logits.argmax(-1) == wanted).sum())
    mine, expected = gradients(unit.model), gradients(plain)
    assert mine.keys() == expected.keys()
    size = sum(float(g.square().sum()) for g in expected.values()) ** 0.5
    for parameter, gradient in expected.items():
        apart = float((mine[parameter] - gradient).norm())
        assert apart <= 1e-4 * max(float(gradient.norm()), 1e-2 * size), parameter


@pytest.mark.parametrize("name", NAMES)
def test_eight_rows_at_once_have_the_gradient_of_four_times_two(name):
    _, head, rows, examples, unit = built(name, label_smoothing=0.1)
    found = []
    for parts in (1, 4):
        unit.zero_grad()
        losses = [unit(batch)[head.name] for batch in batches(unit, rows, examples, parts)]
        assert len(losses) == parts
        (sum(loss.total for loss in losses) / sum(loss.num_targets for loss in losses)).backward()
        found.append(gradients(unit.model))
    one, other = found
    size = sum(float(g.square().sum()) for g in one.values()) ** 0.5
    for parameter, gradient in one.items():
        assert float((gradient - other[parameter]).norm()) <= 1e-4 * max(float(gradient.norm()), 1e-2 * size)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_smoothing_is_for_training_and_evaluation_is_plain(name):
    _, head, rows, examples, unit = built(name, label_smoothing=0.2)
    bare = built(name)[-1]
    (batch,) = batches(unit, rows, examples)
    smoothed, plain = unit(batch)[head.name].total.item(), bare(batch)[head.name].total.item()
    assert smoothed != pytest.approx(plain, rel=1e-5)
    found = evaluate(unit, [batch])
    mean = plain / batch.num_targets[head.name]
    assert found[f"loss/{head.name}"] == pytest.approx(mean, rel=1e-5)
    assert found[f"perplexity/{head.name}"] == pytest.approx(np.exp(mean), rel=1e-4)
    assert 0 <= found[f"accuracy/{head.name}"] <= 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prompt_that_sees_itself_changes_the_loss_and_only_through_the_prompt(name):
    _, head, rows, examples, unit = built(name, bidirectional_prompt=True)
    causal_rows, causal_examples, causal = built(name)[2:]
    (batch,), (plain,) = batches(unit, rows, examples), batches(causal, causal_rows, causal_examples)
    assert batch.layout.prefix_lens is not None and plain.layout.prefix_lens is None
    with torch.no_grad():
        seen, unseen = unit(batch)[head.name].total.item(), causal(plain)[head.name].total.item()
    assert seen != pytest.approx(unseen, rel=1e-4)


@pytest.mark.parametrize("name", ["seq2seq", "causal_generation"])
def test_the_contract_of_plugins_is_kept(name):
    registry = load_plugins().registry
    options = {"target": "text_pair", "metrics": ["exact_match"], "max_new_tokens": 8}
    if name == "causal_generation":
        options = {"template": "{text}\n", "completion": "text_pair", "metrics": ["exact_match"], "max_new_tokens": 8}
    check_component(registry, registry.entry("head", name), options, None)
