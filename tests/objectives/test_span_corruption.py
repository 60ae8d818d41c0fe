"""Span corruption against a plain reading of T5's published preprocessing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.span_corruption import SpanCorruption, SpanCorruptionOptions
from tunecore.types import Progress

EOS, PAD = 1, 0
SENTINELS = tuple(range(1099, 999, -1))  # <extra_id_0> is 1099
START = Progress(0, 1, 0.0, 1.0)


@pytest.fixture
def corpus_of(make_corpus):
    def make(length, sentinels=SENTINELS, eos=EOS):
        corpus = make_corpus([(0, [[[100 + i] for i in range(length)]])], max_length=10_000)
        corpus.sentinel_ids, corpus.eos_id, corpus.pad_id = sentinels, eos, PAD
        return corpus

    return make


def corrupted(corpus, seed=0, **options):
    objective = SpanCorruption(SpanCorruptionOptions(**options))
    stream = PhiloxStream(seed, 0, 0)
    return objective.corrupt(objective.assemble(corpus, 0, stream), corpus, stream, START)


def parts(example):
    return example.input_ids.tolist(), example.targets["span_corruption"].labels.tolist()


def merged(inputs, target):
    """The text of an input and a target, and which of its tokens were hidden, read as a person would."""
    hidden = {}
    for token in target[:-1]:
        if token in SENTINELS:
            current = hidden.setdefault(token, [])
        else:
            current.append(token)
    text, noise = [], []
    for token in inputs[:-1]:
        span = hidden.get(token)
        text += [token] if span is None else span
        noise += [False] if span is None else [True] * len(span)
    return text, noise


def with_sentinels(text, mask):
    """T5's noise_span_to_unique_sentinel: each run where ``mask`` holds becomes the next sentinel."""
    out, count, before = [], 0, False
    for token, inside in zip(text, mask, strict=True):
        if inside and not before:
            out.append(SENTINELS[count])
            count += 1
        elif not inside:
            out.append(token)
        before = inside
    return out


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(2, 300), density=st.floats(0.05, 0.6), mean=st.floats(1.0, 8.0), seed=st.integers(0, 1 << 30)
)
def test_input_and_target_are_those_of_t5(corpus_of_length, length, density, mean, seed):
    corpus = corpus_of_length(length)
    hidden = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(hidden / mean), 1), length - hidden)
    if spans > len(SENTINELS):
        return
    inputs, target = parts(corrupted(corpus, seed, noise_density=density, mean_span_length=mean))
    text, noise = merged(inputs, target)
    assert text == [100 + i for i in range(length)]
    assert sum(noise) == hidden and not noise[0] and noise[-1]
    assert inputs == [*with_sentinels(text, noise), EOS]
    assert target == [*with_sentinels(text, [not n for n in noise]), EOS]
    assert [t for t in inputs if t in SENTINELS] == list(SENTINELS[:spans])
    assert [t for t in target if t in SENTINELS] == list(SENTINELS[:spans])


@pytest.fixture(scope="module")
def corpus_of_length(make_corpus):
    """For hypothesis, which wants fixtures that outlive an example."""

    def make(length):
        corpus = make_corpus([(0, [[[100 + i] for i in range(length)]])], max_length=10_000)
        corpus.sentinel_ids, corpus.eos_id, corpus.pad_id = SENTINELS, EOS, PAD
        return corpus

    return make


def test_the_decoder_reads_the_target_one_place_later_and_every_token_is_asked_for(corpus_of):
    example = corrupted(corpus_of(60))
    targets = example.targets["span_corruption"]
    assert example.decoder_input_ids.tolist() == [PAD, *targets.labels[:-1].tolist()]
    assert targets.index.tolist() == list(range(len(targets.labels))) and targets.level == "token"
    assert example.num_targets == {"span_corruption": 9 + 3 + 1}
    assert example.num_tokens == (60 - 9 + 3 + 1) + (9 + 3 + 1) and example.columns == {}


def test_every_way_to_lay_the_spans_is_equally_likely(corpus_of):
    """4 kept and 4 hidden tokens in 2 spans each: 3 x 3 ways."""
    corpus = corpus_of(8)
    seen = Counter(
        tuple(merged(*parts(corrupted(corpus, seed, noise_density=0.5, mean_span_length=2)))[1])
        for seed in range(1800)
    )
    assert len(seen) == 9
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 26.1  # chi-squared of 8 degrees, p = 0.001


def test_the_stream_alone_decides(corpus_of):
    corpus = corpus_of(120)
    first, again, other = (parts(corrupted(corpus, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_published_lengths():
    """T5's own: inputs of 512 tokens are made of 568, with targets of 114."""
    objective = SpanCorruption(SpanCorruptionOptions())
    assert objective.row_length(512) == 568 + 1 and objective.lengths(568) == (512, 114)


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.8, 2.0), (0.05, 1.0)])
def test_rows_are_as_long_as_fits(corpus_of, density, mean):
    objective = SpanCorruption(SpanCorruptionOptions(noise_density=density, mean_span_length=mean))
    for max_length in (8, 31, 128):
        length = objective.row_length(max_length) - 1
        sizes = [
            max(map(len, parts(corrupted(corpus_of(n, tuple(range(9999, 9000, -1))), noise_density=density,
                                         mean_span_length=mean))))
            for n in (length, length + 1)
        ]  # fmt: skip
        assert sizes[0] <= max_length < sizes[1]


def test_a_single_token_is_kept_and_asks_for_nothing(corpus_of):
    example = corrupted(corpus_of(1))
    assert example.input_ids.tolist() == [100, EOS] and example.decoder_input_ids.tolist() == [PAD]
    assert example.num_targets == {}


def test_what_cannot_be_done_is_said(corpus_of):
    with pytest.raises(ConfigError, match="hides 3 spans of a row of 60 tokens; the tokenizer has 2 sentinels"):
        corrupted(corpus_of(60, SENTINELS[:2]))
    with pytest.raises(ConfigError, match="has 0 sentinels"):
        corrupted(corpus_of(60, ()))
    with pytest.raises(ConfigError, match="end token"):
        corrupted(corpus_of(60, eos=None))
    corpus, objective = corpus_of(60), SpanCorruption(SpanCorruptionOptions())
    with pytest.raises(ConfigError, match="another objective both make the decoder's row"):
        objective.corrupt(corrupted(corpus), corpus, PhiloxStream(0, 0, 0), START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_density": 0.0}, "noise_density"),
        ({"noise_density": 1.0}, "noise_density"),
        ({"mean_span_length": 0.5}, "mean_span_length"),
        ({"mean_span_length": math.inf}, "mean_span_length"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=f"span_corruption.{message}"):
        SpanCorruptionOptions(**options)


def test_arrays_given_are_not_changed(corpus_of):
    corpus = corpus_of(60)
    objective = SpanCorruption(SpanCorruptionOptions())
    example = objective.assemble(corpus, 0, PhiloxStream(0))
    before = example.input_ids.copy()
    objective.corrupt(example, corpus, PhiloxStream(0), START)
    assert np.array_equal(example.input_ids, before)
