"""Scores, loss and gradients equal plain transformers, one unpacked sentence at a time; packing changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tunecore.data.loader import eval_batches
from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.heads.minimal_pairs import MinimalPairs, MinimalPairsOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer, tiny_records
from tunecore.training.unit import Task, TrainUnit
from tunecore.training.whole_rows import WholeRows
from tunecore.types import Progress, Record

ODD = Record({"sentence_good": "Unharbourly boats remember.", "sentence_bad": "Boats unremembered, grey"}, "odd", 1)
RECORDS = [*tiny_records()[:3], ODD]
CASES = [
    *((name, "auto") for name, family in FAMILIES.items() if not family.encoder_decoder),
    ("bert", "within_word_l2r"), ("roberta", "within_word_l2r"),
]  # fmt: skip


def build(name, scoring="auto"):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    head = MinimalPairs(MinimalPairsOptions(scoring=scoring))
    model = make_model([head.name, *head.uses], tokenizer, name)
    with torch.no_grad():  # tell tokens apart by more than a random model does
        model.get_output_embeddings().weight.mul_(20)
    unit = TrainUnit(model, family, [Task(head.name, head, head.build(model, family), 1.0)]).eval()
    return tokenizer, head, unit, TaskRows(RECORDS, head, tokenizer, 32)


def packing(unit, tokenizer):
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"position_offset": unit.family.position_offset(unit.model), "pad_id": pad}


def scores_of(unit, rows, tokenizer, max_tokens=4096):
    whole, found = WholeRows(rows), {}
    with torch.no_grad():
        for batch in eval_batches(rows, max_tokens=max_tokens, **packing(unit, tokenizer)):
            found.update(whole.add(unit.predict(batch), batch))
    return torch.stack([torch.stack(found[row]).sum(0) for row in range(len(rows))])


def one_by_one(plain, tokenizer, sentence, scoring, causal):
    """The score of a sentence by the definition."""
    ids = tokenizer(sentence)["input_ids"]
    if causal:
        if ids[0] != tokenizer.bos_token_id:
            ids = [tokenizer.bos_token_id, *ids]
        log_probs = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(log_probs[i - 1, ids[i]] for i in range(1, len(ids)) if ids[i] != tokenizer.eos_token_id)
    words = tokenizer(sentence).word_ids()
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = list(ids)
        for other in range(place, len(ids) - 1):
            if other == place or (scoring == "within_word_l2r" and words[other] == words[place]):
                masked[other] = tokenizer.mask_token_id
        total = total + plain(torch.tensor([masked])).logits[0, place].log_softmax(-1)[ids[place]]
    return total


def plain_scores(folder, tokenizer, scoring, causal):
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    plain = kind.from_pretrained(folder, attn_implementation="eager").eval()
    pairs = [(r.fields["sentence_good"], r.fields["sentence_bad"]) for r in RECORDS]
    scores = [torch.stack([one_by_one(plain, tokenizer, s, scoring, causal) for s in pair]) for pair in pairs]
    return plain, torch.stack(scores)


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_scores_and_gradients_equal_plain_transformers_one_sentence_at_a_time(name, scoring, tmp_path):
    tokenizer, _, unit, rows = build(name, scoring)
    save_model(unit.model, tmp_path, tokenizer)
    plain, expected = plain_scores(tmp_path, tokenizer, scoring, unit.family.causal)
    torch.testing.assert_close(scores_of(unit, rows, tokenizer), expected.detach(), rtol=1e-4, atol=1e-3)

    total = F.softplus(expected[:, 1] - expected[:, 0]).sum()
    total.backward()
    examples = [e for row in range(len(rows)) for e in rows.examples(row, 0, Progress(0, 1, 0.0, 1.0))]
    (batch,) = pack(examples, max_tokens=1 << 20, **packing(unit, tokenizer))
    loss = unit(batch)["minimal_pairs"]
    assert loss.num_targets == len(RECORDS)
    assert int(loss.num_correct) == int((expected[:, 0] > expected[:, 1]).sum())
    torch.testing.assert_close(loss.total.detach(), total.detach(), rtol=1e-4, atol=1e-4)
    loss.total.backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in unit.model.named_parameters() if p.grad is not None}
    assert theirs.keys() <= mine.keys()
    size = math.sqrt(sum(float(g.square().sum()) for g in theirs.values()))
    assert size > 0
    for key, gradient in theirs.items():
        assert float((mine[key] - gradient).norm()) <= 1e-3 * max(float(gradient.norm()), 1e-2 * size), key


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_batches_and_packing_change_no_score(name):
    tokenizer, _, unit, rows = build(name)
    alone = scores_of(unit, rows, tokenizer, max_tokens=8)
    torch.testing.assert_close(scores_of(unit, rows, tokenizer, max_tokens=1 << 16), alone, rtol=1e-5, atol=1e-4)


def test_both_sums_of_a_forward_come_from_one_look_at_the_vocabulary(monkeypatch):
    tokenizer, _, unit, rows = build("bert")
    calls = []
    family = type(unit.family)
    original = family.token_head
    monkeypatch.setattr(family, "token_head", lambda *args: calls.append(len(args[2])) or original(*args))
    (batch,) = eval_batches(rows, max_tokens=1 << 16, **packing(unit, tokenizer))
    unit.assess(batch)
    assert calls == [batch.num_sequences]


def test_many_rows_meet_the_vocabulary_in_chunks(monkeypatch):
    tokenizer, _, unit, rows = build("bert")
    expected = scores_of(unit, rows, tokenizer)
    monkeypatch.setattr("tunecore.heads.sentence_scores.CHUNK_ROWS", 3)
    torch.testing.assert_close(scores_of(unit, rows, tokenizer), expected)


def test_decode_names_the_likelier_sentence():
    head = MinimalPairs(MinimalPairsOptions())
    raw = [torch.tensor([-1.0, 0.0]), torch.tensor([-2.0, 0.0]), torch.tensor([0.0, -3.5])]
    prediction = head.decode(raw, None, 4)
    assert prediction.label == "sentence_good" and prediction.row_id == 4
    assert prediction.scores == {"sentence_good": -3.0, "sentence_bad": -3.5}
    assert prediction.score == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert head.decode([torch.tensor([-4e3, -1.0])], None, 0).label == "sentence_bad"
