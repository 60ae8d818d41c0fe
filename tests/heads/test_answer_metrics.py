"""Exact match and F1: the definitions of SQuAD's evaluation written out, and ranks that add up."""

from __future__ import annotations

import json
import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.heads.answer_metrics import Answered, AnswerMetrics, best_threshold

WORD = st.sampled_from(["a", "The", "the", "boat.", "boat", "Boat", "an", "open", "window!", "-", "\u00e9"])
WORDS = st.lists(WORD, max_size=5)
TEXT = WORDS.map(" ".join)
ROWS = st.lists(st.tuples(TEXT, st.lists(TEXT.filter(str.strip), max_size=3)), max_size=6)


def normal(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(predicted, true):
    given_words, wanted = normal(predicted), normal(true)
    if not given_words or not wanted:
        return float(given_words == wanted)
    same = sum((Counter(given_words) & Counter(wanted)).values())
    return 2 * same / (len(given_words) + len(wanted))


def metrics_of(rows):
    metrics = AnswerMetrics(lambda raw, record: Answered(*raw))
    for number, row in enumerate(rows):
        metrics.update_row(row, None, number)
    return metrics


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_scores_are_those_of_the_definition(rows):
    found = metrics_of(rows).compute()
    exact = [float(max(normal(p) == normal(t) for t in true or [""])) for p, true in rows]
    overlap = [max(f1(p, t) for t in true or [""]) for p, true in rows]
    mean = len(rows) or 1
    assert found["exact_match"] == pytest.approx(sum(exact) / mean)
    assert found["f1"] == pytest.approx(sum(overlap) / mean)
    kinds = [bool(true) for _, true in rows]
    if any(kinds) and not all(kinds):
        assert found["accuracy_no_answer"] == pytest.approx(
            sum(e for e, kind in zip(exact, kinds, strict=True) if not kind) / kinds.count(False)
        )
        assert found["f1_answerable"] == pytest.approx(
            sum(o for o, kind in zip(overlap, kinds, strict=True) if kind) / kinds.count(True)
        )
    else:
        assert set(found) == {"exact_match", "f1"}


MARGIN = st.integers(-4, 4).map(float)
SCORE = st.integers(0, 4).map(lambda n: n / 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(MARGIN, SCORE, SCORE), min_size=1, max_size=8))
def test_the_best_threshold_is_the_best_of_all(margins):
    def mean(threshold):
        return sum(none if margin > threshold else answer for margin, answer, none in margins) / len(margins)

    best, threshold = best_threshold(margins)
    candidates = [margin + step for margin, _, _ in margins for step in (-0.5, 0.0, 0.5)]
    assert best == pytest.approx(max(map(mean, candidates))) == pytest.approx(mean(threshold))


def test_rows_that_could_have_no_answer_give_the_best_threshold():
    rows = [("", ["boat"], "boat", 1.0), ("", [], "town", 3.0), ("river", ["river"], "river", -2.0)]
    metrics = metrics_of(rows)
    other = metrics_of(rows[:1])
    other.merge([json.loads(json.dumps(metrics_of(rows[1:]).state()))])
    found = metrics.compute()
    assert found == other.compute()
    assert found["f1"] == pytest.approx(2 / 3)
    assert (found["best_f1"], found["best_null_threshold"]) == (1.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(ROWS, ROWS)
def test_ranks_add_up(one, other):
    whole, first, second = metrics_of([*one, *other]), metrics_of(one), metrics_of(other)
    first.merge([json.loads(json.dumps(second.state()))])
    assert first.compute() == pytest.approx(whole.compute())
