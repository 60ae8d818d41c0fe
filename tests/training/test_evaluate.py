from __future__ import annotations

import math

import fake_training as fake
import pytest
import torch

from tunecore.errors import DataError
from tunecore.training.evaluate import EvaluationStopped, evaluate
from tunecore.training.signals import StopSignal


def batches(count=11, words=True, max_tokens=32):
    return fake.eval_batches(fake.FakeRows(count, words=words), max_tokens=max_tokens, position_offset=1, pad_id=0)


def test_losses_are_means_over_all_targets_however_batched():
    unit = fake.make_unit().double()
    whole, split = evaluate(unit, batches(max_tokens=1000)), evaluate(unit, batches(max_tokens=16))
    assert whole == pytest.approx(split, rel=1e-10)
    (batch,) = batches(max_tokens=1000)
    sums = unit.eval()(batch)
    for name, loss in sums.items():
        assert whole[f"loss/{name}"] == pytest.approx(loss.total.item() / loss.num_targets)
    assert whole["loss"] == pytest.approx(2 * whole["loss/words_lm"] + 0.5 * whole["loss/parity"])
    assert whole["perplexity/words_lm"] == pytest.approx(math.exp(whole["loss/words_lm"]))
    right = int(sums["words_lm"].num_correct)
    assert whole["accuracy/words_lm"] == pytest.approx(right / sums["words_lm"].num_targets)
    assert "perplexity/parity" not in whole and "accuracy/parity" not in whole


def test_without_dropout_gradients_or_a_trace():
    unit = fake.make_unit(dropout=0.5)
    unit.train()
    unit.model.body.norm.eval()
    assert evaluate(unit, batches()) == evaluate(unit, batches())
    assert unit.training and unit.model.body.dropout.training and not unit.model.body.norm.training
    assert all(p.grad is None for p in unit.parameters()) and torch.is_grad_enabled()


def test_modes_come_back_after_an_error():
    unit = fake.make_unit()
    unit.train()

    def broken():
        yield from batches()
        raise ValueError

    with pytest.raises(ValueError):
        evaluate(unit, broken())
    assert unit.training and torch.is_grad_enabled()


def test_head_metrics_join_from_one_forward():
    unit = fake.make_unit(head=True)
    calls = []
    unit.model.body.register_forward_hook(lambda *_: calls.append(1))
    found = list(batches(words=False))
    results = evaluate(unit, found, fake.Accuracy())
    assert len(calls) == len(found) > 1
    assert 0 <= results["accuracy"] <= 1 and results["confusion_matrix"] == [[8]] and results["loss"] > 0


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        evaluate(fake.make_unit(), [])


def test_a_stop_ends_it_after_the_batch():
    stop, seen = StopSignal(), []

    def counted():
        for batch in batches(max_tokens=16):
            seen.append(batch)
            if len(seen) == 2:
                stop.request()
            yield batch

    with pytest.raises(EvaluationStopped):
        evaluate(fake.make_unit(), counted(), stop=stop)
    assert len(seen) == 2


def test_a_loss_that_is_not_finite_stays_so():
    unit = fake.make_unit()
    with torch.no_grad():
        unit.model.decoder.bias.fill_(math.nan)
    results = evaluate(unit, batches())
    assert math.isnan(results["loss/words_lm"]) and math.isnan(results["loss"])


class FakeAnswers:
    """Two batches of answers, of a head that measures how many rows were written."""

    def __init__(self, unit, stop=None):
        self.unit, self.stop, self.written = unit, stop, 0
        self.metrics = self

    def __iter__(self):
        for count in (3, 2):
            assert not self.unit.training and not torch.is_grad_enabled()
            self.written += count
            if self.stop is not None:
                self.stop.request()
            yield count

    def state(self):
        return self.written

    def merge(self, others):
        assert others == []

    def compute(self):
        return {"written": self.written}


def test_a_head_that_generates_is_measured_by_its_answers_beside_the_losses():
    unit = fake.make_unit()
    found = evaluate(unit, batches(), answers=FakeAnswers(unit))
    assert found == {**evaluate(unit, batches()), "written": 5}


def test_a_stop_is_noticed_between_batches_of_answers():
    unit, stop = fake.make_unit(), StopSignal()
    written = FakeAnswers(unit, stop)
    with pytest.raises(EvaluationStopped):
        evaluate(unit, batches(), stop=stop, answers=written)
    assert written.written == 3
