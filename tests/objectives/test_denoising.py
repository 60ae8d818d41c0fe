"""Denoising, read token by token: every token of a row is another number, so what became of it can be seen."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.denoising import Denoising, DenoisingOptions
from tunecore.types import Progress

CLS, SEP, MASK = 2, 3, 4
START = Progress(0, 1, 0.0, 1.0)


@pytest.fixture(scope="module")
def corpus_of(make_corpus):
    """Sentences of words of given numbers of pieces; the end token is [SEP]."""

    def make(sentences, max_length=100_000):
        count = iter(range(100, 1_000_000))
        rows = [[[next(count) for _ in range(pieces)] for pieces in words] for words in sentences]
        corpus = make_corpus([(0, rows)], max_length=max_length)
        corpus.eos_id = SEP
        return corpus

    return make


def damaged(corpus, seed=0, **options):
    objective = Denoising(DenoisingOptions(**options))
    stream = PhiloxStream(seed, 0, 0)
    example = objective.assemble(corpus, 0, stream)
    made = objective.corrupt(example, corpus, stream, START)
    labels = made.targets["denoising"].labels.tolist()
    assert labels == example.input_ids.tolist() and made.targets["denoising"].index.tolist() == list(range(len(labels)))
    assert made.decoder_input_ids.tolist() == [SEP, *labels[:-1]]
    assert made.input_ids[0] == CLS and made.input_ids[-1] == SEP and len(made) <= corpus.max_length
    assert made.token_type_ids is None and made.columns == {}
    return made.input_ids[1:-1].tolist(), labels[1:-1]


def gaps(found, text):
    """(masks, hidden tokens) before the first kept token, between each two, and after the last."""
    places = {token: i for i, token in enumerate(text)}
    result, masks, last = [], 0, -1
    for token in [*found, None]:
        if token == MASK:
            masks += 1
            continue
        place = len(text) if token is None else places[token]
        assert place > last, "what stays keeps its order"
        result.append((masks, place - last - 1))
        masks, last = 0, place
    return result


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 200), rate=st.floats(0.01, 1.0), mean=st.floats(1.0, 6.0), seed=st.integers(0, 1 << 30),
    spare=st.integers(0, 3),
)
def test_infilling(corpus_of, length, rate, mean, seed, spare):
    corpus = corpus_of([[1] * length], max_length=length + 2 + spare)
    found, text = damaged(corpus, seed, mask_rate=rate, poisson_lambda=mean, permute_sentences=0.0)
    between = gaps(found, text)
    assert sum(hidden for _, hidden in between) == max(1, round(rate * length))
    assert all(masks for masks, hidden in between if hidden), "nothing is left out without a mask"


def test_span_lengths_are_poisson(corpus_of):
    """At a low rate spans hardly ever touch, so each gap shows one length; 0 included."""
    corpus, seen = corpus_of([[1] * 5000]), Counter()
    for seed in range(12):
        found, text = damaged(corpus, seed, mask_rate=0.02, permute_sentences=0.0)
        seen.update(hidden for masks, hidden in gaps(found, text) if masks == 1)
    total = sum(seen.values())
    assert total > 300
    for length in range(7):
        want = math.exp(-3) * 3**length / math.factorial(length)
        assert abs(seen[length] / total - want) < 4 * math.sqrt(want * (1 - want) / total), length


def test_as_many_masks_as_spans_of_three(corpus_of):
    found, text = damaged(corpus_of([[1] * 6000]), permute_sentences=0.0)
    assert len(text) - len([t for t in found if t != MASK]) == 1800
    assert abs(found.count(MASK) - 600) < 60


@settings(max_examples=60, deadline=None)
@given(
    sentences=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=8),
    share=st.floats(0.01, 1.0), seed=st.integers(0, 1 << 30),
)
def test_sentences_change_places_whole(corpus_of, sentences, share, seed):
    corpus = corpus_of(sentences)
    found, text = damaged(corpus, seed, mask_rate=0.0, permute_sentences=share)
    whole, at = [], 0
    for words in sentences:
        whole.append(tuple(text[at : at + sum(words)]))
        at += sum(words)
    owner = {token: i for i, sentence in enumerate(whole) for token in sentence}
    order = list(dict.fromkeys(owner[token] for token in found))
    assert sorted(order) == list(range(len(whole))) and found == [t for i in order for t in whole[i]]
    assert sum(i != place for place, i in enumerate(order)) <= math.ceil(share * len(whole))


def test_every_order_of_the_sentences_is_equally_likely(corpus_of):
    corpus = corpus_of([[1], [1], [1]])
    seen = Counter(tuple(damaged(corpus, seed, mask_rate=0.0)[0]) for seed in range(1200))
    assert len(seen) == 6
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 20.5  # chi-squared of 5 degrees, p = 0.001


@settings(max_examples=60, deadline=None)
@given(
    sentences=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 30),
)
def test_whole_words_are_hidden_whole(corpus_of, sentences, seed):
    corpus = corpus_of(sentences)
    found, text = damaged(corpus, seed, whole_word=True, mask_rate=0.5)
    kept, at, hidden = set(found), 0, 0
    words = [n for sentence in sentences for n in sentence]
    for pieces in words:
        word = text[at : at + pieces]
        assert len({token in kept for token in word}) == 1
        hidden += word[0] not in kept
        at += pieces
    assert hidden == max(1, round(0.5 * len(words)))


def test_both_together_and_the_stream_alone_decides(corpus_of):
    corpus = corpus_of([[1] * 9, [1] * 8, [1] * 12, [2] * 6])
    first, again, other = (damaged(corpus, seed) for seed in (1, 1, 2))
    assert first == again != other
    found, text = first
    kept = [t for t in found if t != MASK]
    assert len(text) - len(kept) == round(0.3 * len(text)) and kept != sorted(kept)


def test_columns_and_units_follow_the_options():
    plain = Denoising(DenoisingOptions())
    assert plain.unit == "sentence" and plain.columns == ("sentence_starts",)
    words = Denoising(DenoisingOptions(permute_sentences=0.0, whole_word=True))
    assert words.unit == "document" and words.columns == ("word_starts",)


def test_what_cannot_be_done_is_said(corpus_of):
    corpus = corpus_of([[1] * 5])
    for name, message in (("mask_id", "a mask token"), ("eos_id", "an end token")):
        corpus = corpus_of([[1] * 5])
        setattr(corpus, name, None)
        with pytest.raises(ConfigError, match=message):
            damaged(corpus)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": -0.1}, "denoising.mask_rate is"),
        ({"mask_rate": 1.1}, "denoising.mask_rate is"),
        ({"permute_sentences": 2.0}, "denoising.permute_sentences is"),
        ({"mask_rate": 0.0, "permute_sentences": 0.0}, "nothing is damaged"),
        ({"poisson_lambda": 0.5}, "denoising.poisson_lambda"),
        ({"label_smoothing": -0.1}, "denoising.label_smoothing"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        DenoisingOptions(**options)
