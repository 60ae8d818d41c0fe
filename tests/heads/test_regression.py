"""Numbers as labels: how they are read and scaled, losses by definition, metrics in the unit of the labels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.errors import ConfigError, DataError
from tunecore.heads.regression import NAME, Regression, RegressionOptions
from tunecore.heads.regression_metrics import RegressionMetrics
from tunecore.types import Head, Record


def head(**options):
    return Regression(RegressionOptions(**options))


def rows_of(*labels):
    return [Record({"text": "a film", "label": value}, "train.csv", i) for i, value in enumerate(labels, start=2)]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.sampled_from([str, float, np.float64, lambda x: f" {x!r} "]))
def test_numbers_of_many_forms_are_read(value, form):
    ours = head()
    assert isinstance(ours, Head)
    assert ours.prepare(rows_of(form(value), form(value + 1))) == {"labels": ["label"]}
    assert ours.target(rows_of(form(value))[0]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"train\.csv:3: the number \(column 'label'\) is missing"),
        (" ", r"train\.csv:3: the number \(column 'label'\) is missing"),
        (math.nan, r"train\.csv:3: the number \(column 'label'\) is nan"),
        ("inf", r"train\.csv:3: the number \(column 'label'\) is inf"),
        ("good", r"train\.csv:3: the number \(column 'label'\) is 'good', which is no number"),
        ([1.0, 2.0], r"train\.csv:3: 2 numbers in column 'label'; there must be 1"),
        ([], r"train\.csv:3: the number \(column 'label'\) is missing"),
    ],
)
def test_a_label_that_is_no_number_is_named(value, message):
    with pytest.raises(DataError, match=message):
        head().prepare(rows_of(1, value))


def test_numbers_out_of_range_and_all_alike_are_refused():
    with pytest.raises(DataError, match=r"train\.csv:3: 5.5 \(column 'label'\) lies outside 0 to 5"):
        head(min=0, max=5).prepare(rows_of(5, 5.5))
    with pytest.raises(DataError, match=r"every training row has 2.0 in column 'label' of train\.csv"):
        head().prepare(rows_of(2, "2.0"))
    with pytest.raises(DataError, match=r"train\.csv:2: there is no column 'score'; columns found: text, label"):
        head(label="score").prepare(rows_of(2, 3))


def test_several_numbers_are_a_list_or_columns():
    listed = head()
    assert listed.prepare(rows_of([1, 2], (3, 4))) == {"labels": ["label_0", "label_1"]}
    assert listed.target(rows_of(np.array([5.0, 6.0]))[0]) == [5.0, 6.0]
    columns = head(label=("valence", "arousal"), min=0, max=10)
    row = Record({"text": "x", "valence": "1", "arousal": 2.5}, "v.csv", 2)
    assert columns.prepare([row, Record({"text": "x", "valence": 1, "arousal": 2}, "v.csv", 3)]) == {
        "labels": ["valence", "arousal"]
    }
    assert columns.target(row) == [0.1, 0.25]
    assert columns.config_fields()["id2label"] == {0: "valence", 1: "arousal"}
    with pytest.raises(DataError, match=r"v\.csv:2: the number \(column 'arousal'\) is nan"):
        columns.target(Record({"valence": 1, "arousal": "nan"}, "v.csv", 2))


def test_the_range_is_learnt_as_0_to_1_and_given_back():
    ours = head(min=1, max=5)
    ours.load(ours.prepare(rows_of(1, 2, 5)))
    assert [ours.target(row) for row in rows_of(1, 2, 5)] == [0.0, 0.25, 1.0]
    assert ours.decode([torch.tensor([0.25])], None, 3).label == pytest.approx(2.0)
    many = head()
    many.load({"labels": ["a", "b"]})
    assert many.decode([torch.tensor([0.5, 2.0])], None, 3).scores == {"a": 0.5, "b": 2.0}


@pytest.mark.parametrize("options", [{}, {"loss": "huber"}, {"loss": "huber", "huber_delta": 0.25}])
def test_losses_are_their_definitions(options):
    torch.manual_seed(0)
    outputs, labels = torch.randn(6, 2) * 2, torch.randn(6, 2)
    delta, total = options.get("huber_delta", 1.0), 0.0
    for errors in (outputs - labels).abs().tolist():
        for e in errors:
            huber = e * e / 2 if e <= delta else delta * (e - delta / 2)
            total += (huber if options else e * e) / 2
    loss, correct = head(**options).loss_of(outputs, labels)
    assert loss.item() == pytest.approx(total, rel=1e-5) and correct is None


def batch_of(labels):
    return SimpleNamespace(targets={NAME: SimpleNamespace(index=torch.arange(len(labels)), labels=labels)})


@pytest.mark.parametrize("numbers", [1, 3])
def test_metrics_merge_and_are_in_the_unit_of_the_labels(numbers):
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.rand(20, numbers, generator=generator), torch.rand(20, numbers, generator=generator)
    names = [f"n{i}" for i in range(numbers)]
    one, other = RegressionMetrics(names, NAME, 1.0, 4.0), RegressionMetrics(names, NAME, 1.0, 4.0)
    one.update(outputs[:7], batch_of(labels[:7]))
    other.update(outputs[7:], batch_of(labels[7:].squeeze(-1)))
    one.merge([other.state()])
    found = one.compute()
    errors = ((outputs - labels) * 4).double()
    assert found["mse"] == pytest.approx(errors.square().mean().item())
    assert found["mae"] == pytest.approx(errors.abs().mean().item())
    each = [np.corrcoef(outputs[:, i], labels[:, i])[0, 1] for i in range(numbers)]
    assert found["pearson"] == pytest.approx(np.mean(each), abs=1e-6)
    assert head().default_metric in found
    assert ("each" in found) is (numbers > 1)
    assert RegressionMetrics(names, NAME).compute()["mse"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mae"}, "loss is 'mae'; it must be mse or huber"),
        ({"huber_delta": 0.0}, "huber_delta is 0"),
        ({"min": 1.0}, "set both or neither"),
        ({"min": 1.0, "max": 1.0}, "min must be below max"),
        ({"label": ("a", "a")}, "each column once"),
        ({"label": ()}, "no column"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)
