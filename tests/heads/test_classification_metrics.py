from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.heads.classification_metrics import ClassificationMetrics


def metrics_of(pairs, classes):
    metrics = ClassificationMetrics([f"c{i}" for i in range(classes)], "loss")
    metrics.update(*batch(pairs, classes))
    return metrics


def batch(pairs, classes):
    """Logits whose most likely class is the prediction, and a batch with the labels."""
    raw = torch.full((len(pairs), classes), -1.0)
    for row, (_, predicted) in enumerate(pairs):
        raw[row, predicted] = 1.0
    targets = SimpleNamespace(
        index=torch.arange(len(pairs)), labels=torch.tensor([t for t, _ in pairs], dtype=torch.int64)
    )
    return raw, SimpleNamespace(targets={"loss": targets})


def brute_force(pairs, classes):
    """Each figure from its definition, counting pairs one by one."""
    report = {}
    for c in range(classes):
        hit = sum(t == c and p == c for t, p in pairs)
        true, predicted = sum(t == c for t, _ in pairs), sum(p == c for _, p in pairs)
        precision, recall = (hit / n if n else 0.0 for n in (predicted, true))
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        report[f"c{c}"] = {"precision": precision, "recall": recall, "f1": f1, "support": true}
    present = {t for t, _ in pairs} | {p for _, p in pairs}
    true, predicted = (np.eye(classes)[[pair[i] for pair in pairs]] for i in (0, 1))
    x, y = true - true.mean(0), predicted - predicted.mean(0)
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return {
        "accuracy": sum(t == p for t, p in pairs) / len(pairs),
        "f1_macro": sum(report[f"c{c}"]["f1"] for c in present) / len(present),
        "mcc": (x * y).sum() / spread if spread > 1e-12 else 0.0,
        "report": report,
    }


pairs_of = st.integers(2, 5).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40)
    )
)


@settings(max_examples=80)
@given(pairs_of)
def test_every_figure_equals_its_definition(case):
    classes, pairs = case
    got, want = metrics_of(pairs, classes).compute(), brute_force(pairs, classes)
    for name in ("accuracy", "f1_macro", "mcc"):
        assert got[name] == pytest.approx(want[name], abs=1e-9), name
    assert got["f1_micro"] == got["accuracy"]
    for label, row in want["report"].items():
        assert got["report"][label] == pytest.approx(row)
    assert got["f1"] == pytest.approx(want["report"]["c1"]["f1"] if classes == 2 else want["f1_macro"])
    matrix = np.asarray(got["confusion_matrix"])
    for t in range(classes):
        for p in range(classes):
            assert matrix[t, p] == pairs.count((t, p))
    assert got["labels"] == [f"c{i}" for i in range(classes)]


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=30)
@given(pairs_of)
def test_scikit_learn_agrees(case):
    sk = pytest.importorskip("sklearn.metrics")
    classes, pairs = case
    true, predicted = zip(*pairs, strict=True)
    got = metrics_of(pairs, classes).compute()
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert got["mcc"] == pytest.approx(sk.matthews_corrcoef(true, predicted), abs=1e-9)
    assert got["f1_macro"] == pytest.approx(sk.f1_score(true, predicted, average="macro", zero_division=0))
    assert got["f1_micro"] == pytest.approx(sk.f1_score(true, predicted, average="micro", zero_division=0))


@settings(max_examples=30)
@given(pairs_of, st.integers(1, 4))
def test_ranks_and_batches_add_up(case, parts):
    classes, pairs = case
    ranks = [ClassificationMetrics([f"c{i}" for i in range(classes)], "loss") for _ in range(parts)]
    for i, rank in enumerate(ranks):
        if pairs[i::parts]:
            rank.update(*batch(pairs[i::parts], classes))
    first, *others = ranks
    first.merge([json.loads(json.dumps(rank.state())) for rank in others])
    assert first.compute() == metrics_of(pairs, classes).compute()


def test_only_sequences_with_a_label_count():
    metrics = ClassificationMetrics(["a", "b"], "loss")
    raw = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    targets = SimpleNamespace(index=torch.tensor([2]), labels=torch.tensor([1]))
    metrics.update(raw, SimpleNamespace(targets={"loss": targets}))
    metrics.update(raw, SimpleNamespace(targets={}))
    assert metrics.state() == [[0, 0], [0, 1]]


def test_nothing_counted_gives_zeros_not_nan():
    got = ClassificationMetrics(["a", "b"], "loss").compute()
    assert [got[name] for name in ("accuracy", "f1", "f1_macro", "f1_micro", "mcc")] == [0.0] * 5
