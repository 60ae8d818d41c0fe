"""Entity counts: equal to seqeval's scores, and mergeable."""

from __future__ import annotations

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, classification_report

from tunecore.heads.entity_metrics import EntityMetrics
from tunecore.heads.tags import single_spans, spans_of

TAGS = st.sampled_from(["O", "B-per", "I-per", "B-loc", "I-loc", "E-loc", "S-per"])
SENTENCE = st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8)


def metrics_of(pairs, spans=spans_of):
    metrics = EntityMetrics(lambda raw, record: raw, spans)
    for row, sentence in enumerate(pairs):
        metrics.update_row([[true for true, _ in sentence], [given for _, given in sentence]], None, row)
    return metrics


@settings(deadline=None, max_examples=60)
@given(st.lists(SENTENCE, min_size=1, max_size=6))
def test_scores_are_those_of_seqeval(pairs):
    ours = metrics_of(pairs).compute()
    true = [[a for a, _ in sentence] for sentence in pairs]
    given_tags = [[b for _, b in sentence] for sentence in pairs]
    assert ours["accuracy"] == pytest.approx(accuracy_score(true, given_tags))
    if not ours["report"]:  # seqeval has no report of nothing
        assert ours["f1"] == 0
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(true, given_tags, output_dict=True, zero_division=0)
    micro = theirs.pop("micro avg")
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert ours[name] == pytest.approx(micro[key])
        for kind, scores in ours["report"].items():
            assert scores[name] == pytest.approx(theirs[kind][key])
    assert ours["f1_macro"] == pytest.approx(theirs["macro avg"]["f1-score"])
    assert {kind: scores["support"] for kind, scores in ours["report"].items()} == {
        kind: row["support"] for kind, row in theirs.items() if not kind.endswith(" avg")
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(SENTENCE, max_size=6), st.lists(SENTENCE, max_size=6))
def test_ranks_add_up(one, other):
    whole, first, second = metrics_of([*one, *other]), metrics_of(one), metrics_of(other)
    first.merge([json.loads(json.dumps(second.state()))])
    assert first.compute() == whole.compute()


def test_words_alone_are_counted_where_tags_mark_no_spans():
    pairs = [[("NOUN", "NOUN"), ("VERB", "NOUN"), ("NOUN", "NOUN"), ("VERB", "VERB")]]
    found = metrics_of(pairs, single_spans).compute()
    assert found["accuracy"] == found["f1"] == 0.75
    assert found["report"]["VERB"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}


def test_nothing_is_zero():
    assert metrics_of([]).compute() == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0, "accuracy": 0.0, "report": {},
    }  # fmt: skip
