"""Heads in whole models: loss, outputs and gradients are those of plain transformers on padded rows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from tunecore.heads.multi_label_classification import MultiLabelClassification, MultiLabelClassificationOptions
from tunecore.heads.multiple_choice import MultipleChoice, MultipleChoiceOptions
from tunecore.heads.regression import Regression, RegressionOptions
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import tiny_records
from tunecore.types import Record

ONE_STACK = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)
CHOICES = ("a long letter", "seven grey stones", "the harbour", "an open window near the river")
HEADS = {
    "classification": (SequenceClassification, SequenceClassificationOptions, {}, ("a", "b", "c")),
    "pairs": (SequenceClassification, SequenceClassificationOptions, {"text_pair": "text_pair"}, ("a", "b", "c")),
    "multi_label": (MultiLabelClassification, MultiLabelClassificationOptions, {}, ("a", "b,c", "", "c,a")),
    "number": (Regression, RegressionOptions, {"text_pair": "text_pair"}, (0.5, 3, 1.25, -4.0)),
    "numbers": (Regression, RegressionOptions, {}, ([0.5, 3.0], [1.25, -4.0], [2, 2])),
}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ONE_STACK)
def test_sequence_heads_are_those_of_transformers(family, kind, build, assert_same_gradients, tmp_path):
    cls, options_cls, options, labels = HEADS[kind]
    records = tiny_records(labels)
    made = build(family, cls(options_cls(**options)), records)
    plain = made.plain(tmp_path, AutoModelForSequenceClassification)
    texts = [r.fields["text"] for r in records]
    pairs = [r.fields["text_pair"] for r in records] if "text_pair" in options else None
    inputs = made.tokenizer(texts, pairs, padding=True, truncation="longest_first", max_length=32, return_tensors="pt")
    wanted = torch.tensor([made.head.target(record) for record in records])
    theirs = plain(**inputs, labels=wanted)
    theirs.loss.backward()
    (batch,) = made.pack()
    with torch.no_grad():
        losses, outputs = made.unit.assess(batch)
    torch.testing.assert_close(outputs, theirs.logits, rtol=2e-4, atol=2e-4)
    (loss,) = losses.values()
    assert loss.num_targets == len(records)
    assert (loss.total / loss.num_targets).item() == pytest.approx(theirs.loss.item(), rel=1e-4, abs=1e-6)
    mine = {name: gradient / len(records) for name, gradient in made.gradient([batch]).items()}
    assert_same_gradients(gradients(plain), mine, tolerance=2e-3)
    if kind in ("classification", "pairs"):
        assert int(loss.num_correct) == int((theirs.logits.argmax(-1) == wanted).sum())
        assert [plain.config.id2label[i] for i in range(3)] == ["a", "b", "c"]
    if kind == "multi_label":
        assert int(loss.num_correct) == int(((theirs.logits.sigmoid() >= 0.5) == (wanted > 0.5)).all(-1).sum())


def choice_records():
    rows = [
        {"question": r.fields["text"], "choices": list(CHOICES[: 2 + i % 3]), "label": (i * 2) % (2 + i % 3)}
        for i, r in enumerate(tiny_records())
    ]
    return [Record(row, "tiny.jsonl", number) for number, row in enumerate(rows, start=1)]


def padded_choices(made, record):
    """One question as transformers takes it: [1, K, L]."""
    choices = record.fields["choices"]
    questions = [record.fields["question"]] * len(choices)
    inputs = made.tokenizer(questions, choices, padding=True, truncation=True, max_length=32, return_tensors="pt")
    return {name: tensor[None] for name, tensor in inputs.items()}


def has_choices(family):
    return "multiple_choice" in {task for tasks in FAMILIES[family].classes.values() for task in tasks}


@pytest.mark.parametrize("family", [name for name in ONE_STACK if has_choices(name)])
def test_choices_are_those_of_transformers(family, build, assert_same_gradients, tmp_path):
    records = choice_records()
    made = build(family, MultipleChoice(MultipleChoiceOptions()), records)
    assert made.module is None
    plain = made.plain(tmp_path, AutoModelForMultipleChoice)
    total, scores = 0.0, []
    for record in records:
        theirs = plain(**padded_choices(made, record), labels=torch.tensor([record.fields["label"]]))
        theirs.loss.backward()
        total += theirs.loss.item()
        scores += theirs.logits[0].tolist()
    (batch,) = made.pack()
    with torch.no_grad():
        losses, outputs = made.unit.assess(batch)
    torch.testing.assert_close(outputs, torch.tensor(scores), rtol=2e-4, atol=2e-4)
    assert losses["multiple_choice"].num_targets == len(records)
    assert losses["multiple_choice"].total.item() == pytest.approx(total, rel=1e-4)
    assert_same_gradients(gradients(plain), made.gradient([batch]), tolerance=2e-3)


@pytest.mark.parametrize("family", [name for name in ONE_STACK if not has_choices(name)])
def test_a_family_without_such_a_class_gets_a_layer(family, build):
    records = choice_records()
    made = build(family, MultipleChoice(MultipleChoiceOptions()), records)
    assert made.module.linear.weight.shape == (1, 32)
    made.module.linear.weight.data.mul_(10)
    (batch,) = made.pack()
    with torch.no_grad():
        losses, outputs = made.unit.assess(batch)
    total, place = 0.0, 0
    for record in records:
        scores = []
        for choice in record.fields["choices"]:
            one = made.head.examples(
                Record({**record.fields, "choices": [choice, choice]}, "", 0), 0, made.tokenizer, 32, labelled=False
            )[0]
            row = {"input_ids": torch.from_numpy(one.input_ids)[None]}
            with torch.no_grad():
                hidden = made.family.backbone(made.unit.model)(**row).last_hidden_state[0]
            scores.append(made.module(hidden[-1 if made.family.causal else 0]))
        logits = torch.stack(scores)[:, 0]
        torch.testing.assert_close(outputs[place : place + len(scores)], logits, rtol=1e-3, atol=1e-4)
        place += len(scores)
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(record.fields["label"])).item()
    assert losses["multiple_choice"].total.item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("parts", [2, 5, 8])
def test_questions_are_never_split_and_splitting_changes_nothing(parts, build, assert_same_gradients):
    made = build("bert", MultipleChoice(MultipleChoiceOptions()), choice_records())
    whole, split = made.pack(), made.pack(parts=parts)
    assert len(split) == parts and sorted(r for b in split for r in set(b.row_ids)) == list(range(8))
    assert_same_gradients(made.gradient(whole), made.gradient(split))
    assert_same_gradients(made.gradient(whole), made.gradient(made.pack(max_tokens=8)))
