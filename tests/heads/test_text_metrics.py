"""Metrics of texts against the packages themselves, called the way their pages say."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tunecore.errors import ConfigError
from tunecore.heads import text_metrics
from tunecore.heads.text_metrics import TextMetrics, TextMetricsOptions
from tunecore.types import Generated, Record

ALL = ("bleu", "chrf", "rouge", "exact_match")
TEXTS = ["the cat sat on the mat", "a dog barks at night", "so it goes", "rain , rain , go away"]
WANTED = [
    ["the cat sat on a mat"], ["the dog barks", "a dog barks at the moon"], ["so it goes"], ["Rain, rain, go away"]
]  # fmt: skip


def measured(pairs, **options):
    metrics = TextMetrics(TextMetricsOptions(**{"metrics": ALL, **options}), lambda record: record.fields["target"])
    for row, (text, wanted) in enumerate(pairs):
        metrics.update_row([Generated(text, ())], Record({"target": wanted}, "f", row), row)
    return metrics


def test_bleu_and_chrf_are_sacrebleus():
    found = measured(zip(TEXTS, WANTED, strict=True)).compute()
    streams = [[w[0] for w in WANTED], [w[1] if len(w) > 1 else None for w in WANTED]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, streams).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(TEXTS, streams).score, abs=1e-9)
    assert 0 < found["bleu"] < 100 and 0 < found["chrf"] < 100
    lower = measured(zip(TEXTS, WANTED, strict=True), bleu_lowercase=True).compute()
    assert lower["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, streams, lowercase=True).score)
    assert lower["bleu"] > found["bleu"]
    characters = measured(zip(TEXTS, WANTED, strict=True), bleu_tokenize="char").compute()
    assert characters["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, streams, tokenize="char").score)


def test_rouge_is_the_mean_over_rows_of_the_best_reference():
    found = measured(zip(TEXTS, WANTED, strict=True)).compute()
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        best = [max(scorer.score(w, t)[name].fmeasure for w in given) for t, given in zip(TEXTS, WANTED, strict=True)]
        assert found[name] == pytest.approx(100 * sum(best) / len(best))


def test_rouge_1_by_hand():
    """Of "a b b" the reference "b a c" has two words: precision 2/3, recall 2/3."""
    overlap = sum((Counter("abb") & Counter("bac")).values())
    assert overlap == 2
    assert measured([("a b b", ["b a c"])]).compute()["rouge1"] == pytest.approx(100 * 2 / 3)


def test_exact_match_counts_rows_that_are_one_of_the_references():
    found = measured([("a", ["b", "a"]), (" so ", ["so"]), ("x", ["y"])], metrics=("exact_match",)).compute()
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["generated_rows"] == 3
    assert found["samples"][0] == {"text": "a", "reference": "b"}


@settings(max_examples=20)
@given(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_ranks_together_measure_what_one_measures(texts, chance):
    pairs = [(text, chance.choice(WANTED)) for text in texts]
    whole = measured(pairs).compute()
    parts = [measured([]), measured([])]
    order = list(range(len(pairs)))
    chance.shuffle(order)
    for row in order:
        text, wanted = pairs[row]
        chance.choice(parts).update_row([Generated(text, ())], Record({"target": wanted}, "f", row), row)
    parts[0].merge([json.loads(json.dumps(parts[1].state()))])
    assert parts[0].compute() == whole


def test_no_rows_are_zeros_and_not_an_error():
    found = measured([]).compute()
    assert [found[name] for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")] == [0.0] * 6


@pytest.mark.parametrize(
    ("metric", "extra"), [("bleu", "translation"), ("chrf", "translation"), ("rouge", "summarization")]
)
def test_an_absent_package_is_named_with_its_extra(metric, extra, monkeypatch):
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{metric} needs the package .*not installed") as caught:
        TextMetricsOptions(metrics=(metric,)).check_metrics()
    assert f"pip install 'tunecore[{extra}]'" in str(caught.value.hint)
    TextMetricsOptions(metrics=("exact_match",)).check_metrics()


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"unknown metric 'blue'.*bleu"):
        TextMetricsOptions(metrics=("blue",)).check_metrics()
    with pytest.raises(ConfigError, match=r"bleu_tokenize 'klingon' cannot be used"):
        measured([("a", ["a"])], bleu_tokenize="klingon").compute()
