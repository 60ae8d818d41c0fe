"""Any number of labels a row: how they are read, the loss by definition, and metrics beside torchmetrics."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multilabel_exact_match, multilabel_f1_score

from tunecore.errors import ConfigError, DataError
from tunecore.heads.multi_label_classification import NAME, MultiLabelClassification, MultiLabelClassificationOptions
from tunecore.heads.multi_label_metrics import MultiLabelMetrics
from tunecore.types import Head, Record


def head(**options):
    return MultiLabelClassification(MultiLabelClassificationOptions(**options))


def rows_of(*labels):
    return [Record({"text": "a film", "label": value}, "train.csv", i) for i, value in enumerate(labels, start=2)]


NAMES = st.lists(st.sampled_from(["war", "love", "sea", "a b", "10", "9"]), unique=True, max_size=5)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=6), st.sampled_from([",", ";", "|", " / "]))
def test_lists_and_texts_say_the_same(rows, separator):
    rows = [*rows, ["war", "sea"]]
    as_list, as_text = head(), head(separator=separator)
    lists = rows_of(*rows)
    texts = rows_of(*(separator.join(f" {label} " for label in row) for row in rows))
    assert as_list.prepare(lists) == as_text.prepare(texts)
    assert set(as_list.labels) == {label for row in rows for label in row}
    for row, one, other in zip(rows, lists, texts, strict=True):
        target = as_list.target(one)
        assert target == as_text.target(other)
        assert {label for label, on in zip(as_list.labels, target, strict=True) if on} == set(row)


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ([], [0, 0, 0]), ("", [0, 0, 0]), (["c", "a", "c"], [1, 0, 1]), (np.array(["b"]), [0, 1, 0]), ("b", [0, 1, 0]),
        ([0, 2], [1, 0, 1]), ("1, 2", [0, 1, 1]), (2, [0, 0, 1]), (1.0, [0, 1, 0]), (("a", "b"), [1, 1, 0]),
    ],
)  # fmt: skip
def test_labels_of_many_forms(value, target):
    ours = head(labels=("a", "b", "c"))
    assert isinstance(ours, Head)
    assert ours.target(rows_of(value)[0]) == target


def test_columns_may_be_the_labels():
    ours = head(label=("toxic", "threat"))
    values = [(1, "0"), ("1", 1.0), (False, True)]
    rows = [Record({"text": "x", "toxic": a, "threat": b}, "t.csv", 2) for a, b in values]
    assert ours.prepare(rows) == {"labels": ["toxic", "threat"]}
    assert [ours.target(row) for row in rows] == [[1, 0], [1, 1], [0, 1]]
    with pytest.raises(DataError, match=r"t\.csv:2: the label \(column 'threat'\) is 2.0; it must be 0 or 1"):
        ours.target(Record({"toxic": 0, "threat": 2}, "t.csv", 2))
    with pytest.raises(DataError, match="there is no column 'threat'"):
        ours.target(Record({"toxic": 0}, "t.csv", 2))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((None, "a"), r"train\.csv:2: the labels \(column 'label'\) are missing; no label is \[\]"),
        ((math.nan, "a"), r"train\.csv:2: the labels"),
        (("a", "b,"), None),
        ((["a", 0.5], "b"), r"train\.csv:2: the label \(column 'label'\) is 0.5"),
        (("a", "a"), r"the training rows have the labels \['a'\].*at least two"),
    ],
)
def test_rows_that_cannot_be_used_are_named(labels, message):
    if message is None:
        assert head().prepare(rows_of(*labels)) == {"labels": ["a", "b"]}
        return
    with pytest.raises(DataError, match=message):
        head().prepare(rows_of(*labels))


def test_a_label_that_is_not_known_is_named():
    with pytest.raises(DataError, match=r"train\.csv:3: unknown label 'd' \(column 'label'\); known: a, b"):
        head(labels=("a", "b")).prepare(rows_of("a", "b,d"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold is 1"),
        ({"separator": ""}, "separator is empty"),
        ({"labels": ("a", "a")}, "names a more than once"),
        ({"label": ("a",)}, "at least two"),
        ({"label": ("a", "b"), "labels": ("a", "b")}, "labels is set, but the columns a, b are the labels"),
        ({"positive_weights": (1.0, 2.0)}, "2 weights, but the option labels names 0"),
        ({"positive_weights": (1.0, 0.0), "labels": ("a", "b")}, "must be greater than 0"),
        ({"positive_weights": "even"}, "it must be balanced"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


@pytest.mark.parametrize("weights", [None, "balanced", (2.0, 0.5, 1.0)])
def test_the_loss_is_binary_cross_entropy_of_each_label(weights):
    ours = head(labels=("a", "b", "c"), positive_weights=weights)
    rows = rows_of("a", "a,b", "c", "a,c")
    ours.load(ours.prepare(rows))
    positive = {None: [1, 1, 1], "balanced": [1 / 3, 3, 1]}.get(weights, weights)
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([ours.target(row) for row in rows])
    total = correct = 0.0
    for x, y in zip(logits.tolist(), labels.tolist(), strict=True):
        p = [1 / (1 + math.exp(-value)) for value in x]
        total -= sum(
            w * t * math.log(q) + (1 - t) * math.log(1 - q) for w, t, q in zip(positive, y, p, strict=True)
        ) / 3
        correct += [float(q >= 0.5) for q in p] == y
    loss, right = ours.loss_of(logits, labels)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert int(right) == correct


def batch_of(labels):
    index = torch.arange(len(labels))
    return SimpleNamespace(targets={NAME: SimpleNamespace(index=index, labels=torch.tensor(labels).float())})


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(2, 5), st.integers(0, 99), st.sampled_from([0.3, 0.5, 0.9]))
def test_metrics_are_those_of_torchmetrics(rows, labels, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, labels, generator=generator) * 2
    true = torch.randint(0, 2, (rows, labels), generator=generator)
    true[:, 0], logits[:, 0] = 1, 1.0 + logits[:, 0]  # macro averages differ for labels that never occur
    metrics, other = (MultiLabelMetrics([str(i) for i in range(labels)], NAME, threshold) for _ in range(2))
    half = rows // 2
    metrics.update(logits[:half], batch_of(true[:half].tolist() or np.zeros((0, labels))))
    other.update(logits[half:], batch_of(true[half:].tolist()))
    metrics.merge([other.state()])
    found, p = metrics.compute(), logits.sigmoid()
    given, want = (p >= threshold).int(), true
    kw = {"num_labels": labels, "threshold": 0.5}
    occurs = (given | want).sum(0) > 0
    each = multilabel_f1_score(given.float(), want, average="none", **kw)
    assert found["f1_micro"] == pytest.approx(float(multilabel_f1_score(given.float(), want, average="micro", **kw)))
    assert found["f1_macro"] == pytest.approx(float(each[occurs].mean()), abs=1e-6)
    assert found["exact_match"] == pytest.approx(float(multilabel_exact_match(given.float(), want, **kw)))
    by_row = [2 * int((g & w).sum()) / max(int(g.sum() + w.sum()), 1) for g, w in zip(given, want, strict=True)]
    assert found["f1_samples"] == pytest.approx(sum(by_row) / rows)
    assert found["report"]["0"]["support"] == rows


def test_decode_gives_the_labels_above_the_threshold():
    prediction = head(labels=("a", "b", "c"), threshold=0.4).decode([torch.tensor([0.0, -0.3, -3.0])], None, 4)
    assert (prediction.label, prediction.row_id) == (["a", "b"], 4)
    assert prediction.scores == pytest.approx({"a": 0.5, "b": 1 / (1 + math.exp(0.3)), "c": 1 / (1 + math.exp(3))})
