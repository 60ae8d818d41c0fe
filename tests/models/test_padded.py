"""The padded way inside the model: any family may take it, and nothing around the backbone notices."""

from __future__ import annotations

import logging

import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows, TaskRows
from tunecore.errors import ConfigError
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.models import padded
from tunecore.models.families.bert import BertFamily
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.families.roberta import RobertaFamily
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.ops.sequence_vectors import sequence_means
from tunecore.testing import make_corpus, make_model, make_tokenizer, tiny_records
from tunecore.training.unit import ForwardPass, Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
LENGTHS = [7, 1, 9, 5]


class PaddedBert(BertFamily):
    padded = True


class PaddedRoberta(RobertaFamily):
    padded = True


def masked_lm(name, folder, family=None):
    family, tokenizer, objective = family or FAMILIES[name], make_tokenizer(name), MaskedLM(MaskedLMOptions())
    model = make_model(["masked_lm"], tokenizer, name)
    unit = TrainUnit(model, family, [Task("masked_lm", objective, objective.build(model, family), 1.0)]).eval()
    folder.mkdir(exist_ok=True)
    rows = PretrainRows(make_corpus(tokenizer, folder, unit="document"), [objective], seed=1)
    return unit, [rows.examples(row, 0, START)[0] for row in range(10)]


def classification(name, **config):
    tokenizer, head = make_tokenizer(name), SequenceClassification(SequenceClassificationOptions())
    head.prepare(tiny_records(("a", "b")))
    model, family = make_model([head.name], tokenizer, name, config=config), FAMILIES[name]
    unit = TrainUnit(model, family, [Task(head.name, head, head.build(model, family), 1.0)]).eval()
    rows = TaskRows(tiny_records(("a", "b")), head, tokenizer, 32)
    return unit, [e for i in range(len(rows)) for e in rows.examples(i, 0, START)]


def step(unit, examples, parts):
    """Summed losses and the gradient of the sum, over a step in so many micro-batches."""
    unit.zero_grad(set_to_none=True)
    offset, totals = unit.family.position_offset(unit.model), []
    batches = pack(examples, max_tokens=4096, position_offset=offset, pad_id=0, min_micro_batches=parts)
    assert len(batches) == parts
    for batch in batches:
        total = torch.stack([loss.total for loss in unit(batch).values()]).sum()
        total.backward()
        totals.append(total.detach())
    gradients = {name: p.grad for name, p in unit.parameters_by_name().items() if p.grad is not None}
    return torch.stack(totals).sum(), gradients


def assert_alike(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys() and len(ours[1]) > 10
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("name", "family"), [("bert", PaddedBert()), ("roberta", PaddedRoberta())])
def test_a_family_is_the_same_padded_and_packed(name, family, tmp_path):
    """Loss and every gradient: positions with their offset, segments and targets find their tokens."""
    unit, examples = masked_lm(name, tmp_path / "a", family)
    packed, _ = masked_lm(name, tmp_path / "b")
    packed.load_state_dict(unit.state_dict())
    assert_alike(step(unit, examples, 1), step(packed, examples, 1))


def test_the_filler_has_no_hidden_states(make_small, make_packed):
    model = make_small("deberta-v2", {"masked_lm"}).eval()
    batch = make_packed("deberta-v2", model, LENGTHS)
    hidden_TE = batch.hidden("deberta-v2", model)
    assert hidden_TE.shape == (24, 32) and not hidden_TE[22:].any() and hidden_TE[:22].abs().sum(1).all()
    for sequence, rows in zip(batch.sequences, batch.rows, strict=True):
        alone = model.deberta(input_ids=sequence[None]).last_hidden_state[0]
        torch.testing.assert_close(hidden_TE[rows], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["albert", "modernbert", "deberta-v2"])
def test_a_step_in_parts_has_the_same_gradient(name, tmp_path):
    unit, examples = masked_lm(name, tmp_path)
    assert_alike(step(unit, examples, 4), step(unit, examples, 1))


@pytest.mark.parametrize(("name", "config"), [("deberta-v2", {}), ("modernbert", {"classifier_pooling": "mean"})])
def test_a_step_of_labelled_rows_in_parts_has_the_same_gradient(name, config):
    unit, examples = classification(name, **config)
    assert_alike(step(unit, examples, 4), step(unit, examples, 1))


def test_the_mean_stands_for_a_sequence_where_the_model_says_so():
    for pooling in ("mean", "cls"):
        unit, examples = classification("modernbert", classifier_pooling=pooling)
        (batch,) = pack(examples, max_tokens=4096, position_offset=0, pad_id=0)
        assert batch.input_ids.shape[1] > batch.num_tokens, "the filler must have no part in it"
        forward = ForwardPass(unit.model, unit.family, batch)
        parts = forward.hidden()[: batch.num_tokens].split([len(e) for e in examples])
        want = torch.stack([rows.mean(0) if pooling == "mean" else rows[0] for rows in parts])
        torch.testing.assert_close(forward.sequence_rows(), want, rtol=1e-5, atol=1e-6)


def test_means_are_summed_in_float32():
    hidden_TE = torch.ones(1000, 2, dtype=torch.bfloat16)
    assert sequence_means(hidden_TE, torch.tensor([0, 999])).tolist() == [[1.0, 1.0]]


def test_masks_that_padded_rows_cannot_say_are_refused(make_small, make_packed):
    model = make_small("deberta-v2", {"masked_lm"})
    batch = make_packed("deberta-v2", model, LENGTHS)
    layout = batch.layout._replace(decoder_cu_seqlens=batch.layout.cu_seqlens)
    with pytest.raises(ConfigError, match="DebertaV2Model takes padded rows, which cannot say decoder_cu_seqlens"):
        padded.padded_hidden(model.deberta, {"input_ids": batch.input_ids}, layout, 4, 0)


def test_it_is_said_once_why_it_is_slower(make_small, make_packed, caplog):
    padded._say_once.cache_clear()
    model = make_small("deberta", {"masked_lm"}).eval()
    with caplog.at_level(logging.WARNING, "tunecore"):
        for seed in (0, 1):
            make_packed("deberta", model, LENGTHS, seed=seed).hidden("deberta", model)
    (record,) = [r for r in caplog.records if r.name == "tunecore"]
    assert "DebertaModel" in record.getMessage() and "padded" in record.getMessage()
