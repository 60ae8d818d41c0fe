"""The head in a whole model: equal to transformers' own padded forward, and saved as a model that is its own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer, tiny_records
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

LABELS = ("a", "b", "c")


def build(name, pair):
    tokenizer = make_tokenizer(name)
    head = SequenceClassification(SequenceClassificationOptions(text_pair="text_pair" if pair else None))
    records = tiny_records(LABELS)
    facts = head.prepare(records)
    names = dict(enumerate(facts["labels"]))
    config = {"id2label": names, "label2id": {label: number for number, label in names.items()}}
    model = make_model([head.name], tokenizer, name, config=config)
    family = FAMILIES[name]
    unit = TrainUnit(model, family, [Task(head.name, head, head.build(model, family), 1.0)]).eval()
    rows = TaskRows(records, head, tokenizer, 32)
    examples = [e for i in range(len(rows)) for e in rows.examples(i, 0, Progress(0, 1, 0.0, 1.0))]
    (batch,) = pack(examples, max_tokens=1024, position_offset=family.position_offset(model), pad_id=0)
    return tokenizer, records, unit, batch


@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder))
def test_loss_and_predictions_equal_plain_transformers_on_padded_rows(name, pair, tmp_path):
    tokenizer, records, unit, batch = build(name, pair)
    save_model(unit.model, tmp_path, tokenizer)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert [plain.config.id2label[i] for i in range(3)] == list(LABELS)
    texts = [r.fields["text"] for r in records]
    pairs = [r.fields["text_pair"] for r in records] if pair else None
    inputs = tokenizer(texts, pairs, padding=True, truncation="longest_first", max_length=32, return_tensors="pt")
    labels = torch.tensor([plain.config.label2id[r.fields["label"]] for r in records])
    with torch.no_grad():
        theirs = plain(**inputs, labels=labels)
        losses, logits = unit.assess(batch)
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-4, atol=1e-5)
    ours = losses["sequence_classification"]
    assert ours.num_targets == len(records)
    assert (ours.total / ours.num_targets).item() == pytest.approx(theirs.loss.item(), rel=1e-4)
    assert int(ours.num_correct) == int((theirs.logits.argmax(-1) == labels).sum())
