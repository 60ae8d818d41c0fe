"""The objectives in a whole model: equal to the losses transformers computes on the same corrupted, padded rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows
from tunecore.models.families.builtin import FAMILIES
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.testing import make_corpus, make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)


def build(name, objectives, folder):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    model = make_model([o.name for o in objectives], tokenizer, name)
    pair = any(o.unit == "pair" for o in objectives)
    columns = [column for o in objectives for column in o.columns]
    corpus = make_corpus(tokenizer, folder, unit="pair" if pair else "document", columns=columns)
    unit = TrainUnit(model, family, [Task(o.name, o, o.build(model, family), 1.0) for o in objectives]).eval()
    rows = PretrainRows(corpus, objectives, seed=1)
    examples = [rows.examples(row, 0, START)[0] for row in range(10)]
    (batch,) = pack(
        examples, max_tokens=4096, position_offset=family.position_offset(model), pad_id=corpus.pad_id,
        view=rows.views[0],
    )
    return unit, examples, batch, corpus.pad_id


def padded(examples, pad_id, name):
    """input_ids, attention mask, segments and labels (-100 where there is no target) as transformers takes them."""
    shape = (len(examples), max(len(e) for e in examples))
    ids, mask, types, labels = (np.full(shape, value) for value in (pad_id, 0, 0, -100))
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.input_ids
        mask[row, : len(example)] = 1
        if example.token_type_ids is not None:
            types[row, : len(example)] = example.token_type_ids
        targets = example.targets[name]
        labels[row, targets.index] = targets.labels
    return tuple(torch.from_numpy(x) for x in (ids, mask, types, labels))


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("whole_word", [False, True])
def test_masked_lm_and_next_sentence_in_one_forward_equal_bert_for_pretraining(tmp_path, whole_word):
    objectives = [MaskedLM(MaskedLMOptions(whole_word=whole_word)), NextSentence(NextSentenceOptions())]
    unit, examples, batch, pad_id = build("bert", objectives, tmp_path)
    assert type(unit.model).__name__ == "BertForPreTraining"
    ids, mask, types, labels = padded(examples, pad_id, "masked_lm")
    with torch.no_grad():
        losses = unit(batch)
        plain = unit.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
    assert losses["masked_lm"].num_targets == int((labels != -100).sum())
    expected = cross_entropy(plain.prediction_logits, labels).item()
    assert losses["masked_lm"].total.item() == pytest.approx(expected, rel=1e-4)
    pairs = torch.tensor([int(e.targets["next_sentence"].labels[0]) for e in examples])
    assert set(pairs.tolist()) == {0, 1}
    relation = torch.nn.functional.cross_entropy(plain.seq_relationship_logits, pairs, reduction="sum").item()
    assert losses["next_sentence"].total.item() == pytest.approx(relation, rel=1e-4)


@pytest.mark.parametrize("name", sorted(n for n, f in FAMILIES.items() if not f.causal and not f.encoder_decoder))
def test_masked_lm_equals_every_encoders_own_head(name, tmp_path):
    unit, examples, batch, pad_id = build(name, [MaskedLM(MaskedLMOptions())], tmp_path)
    ids, mask, _, labels = padded(examples, pad_id, "masked_lm")
    with torch.no_grad():
        ours = unit(batch)["masked_lm"]
        plain = unit.model(input_ids=ids, attention_mask=mask)
    assert ours.total.item() == pytest.approx(cross_entropy(plain.logits, labels).item(), rel=1e-4)
    hits = (plain.logits.argmax(-1) == labels).sum()
    assert int(ours.num_correct) == int(hits)


def test_next_sentence_has_a_layer_of_its_own_where_the_class_has_none(tmp_path):
    unit, _, batch, _ = build("roberta", [MaskedLM(MaskedLMOptions()), NextSentence(NextSentenceOptions())], tmp_path)
    assert "tasks.next_sentence.weight" in unit.parameters_by_name()
    losses = unit(batch)
    losses["next_sentence"].total.backward()
    assert unit.parameters_by_name()["tasks.next_sentence.weight"].grad.abs().max() > 0


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.causal))
def test_causal_lm_equals_transformers_shifted_loss(name, tmp_path):
    unit, examples, batch, pad_id = build(name, [CausalLM(CausalLMOptions())], tmp_path)
    assert batch.view == "causal"
    ids, mask, _, _ = padded(examples, pad_id, "causal_lm")
    labels = torch.where(mask.bool(), ids, -100)
    with torch.no_grad():
        ours = unit(batch)["causal_lm"]
        plain = unit.model(input_ids=ids, attention_mask=mask, labels=labels)
    assert (ours.total / ours.num_targets).item() == pytest.approx(plain.loss.item(), rel=1e-4)
