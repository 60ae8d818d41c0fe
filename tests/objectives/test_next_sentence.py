from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.types import Progress

CLS, SEP = 2, 3


def sentences(document, row, lengths):
    """Sentences of one-piece words; all tokens carry an id of their document (10 + document)."""
    return (document, [[[10 + document]] * n for n in lengths])


def segments(example):
    """The two segments of an example, special tokens left out."""
    ids = example.input_ids.tolist()
    assert ids[0] == CLS and ids[-1] == SEP
    middle = ids.index(SEP)
    return ids[1:middle], ids[middle + 1 : -1]


def assembled(corpus, row, seed=0, **options):
    return NextSentence(NextSentenceOptions(**options)).assemble(corpus, row, PhiloxStream(seed, row))


def label(example):
    target = example.targets["next_sentence"]
    assert target.level == "sequence"
    assert target.index.tolist() == [0]
    return int(target.labels[0])


@pytest.fixture
def corpus(make_corpus):
    lengths = [(5, 3, 4), (6,), (2, 2, 2, 2), (7, 1)]
    return make_corpus([sentences(d, 0, lengths[d % 4]) for d in range(30)], max_length=40)


def test_label_order_is_berts_and_random_segments_come_from_another_document(corpus):
    labels = set()
    for seed in range(60):
        example = assembled(corpus, 8, seed)
        first, second = segments(example)
        assert set(first) == {18}
        labels.add(label(example))
        if label(example) == 0:
            assert first + second == corpus[8].ids.tolist()
        else:
            assert set(second) != {18}
            assert len(set(second)) == 1
    assert labels == {0, 1}


def test_half_of_the_pairs_are_random(corpus):
    n = 1000
    random = sum(label(assembled(corpus, row % 30, seed=row)) for row in range(n))
    assert abs(random - n / 2) < 4.5 * math.sqrt(n / 4)
    few = sum(label(assembled(corpus, row % 30, seed=row, random_probability=0.1)) for row in range(n))
    assert abs(few - n * 0.1) < 4.5 * math.sqrt(n * 0.09)


def test_the_cut_is_at_any_sentence_boundary_and_in_the_middle_of_a_lone_sentence(corpus):
    cuts = {len(segments(assembled(corpus, 0, seed))[0]) for seed in range(60)}
    assert cuts == {5, 8}
    assert {len(segments(assembled(corpus, 1, seed))[0]) for seed in range(20)} == {3}


def test_random_segments_are_as_long_as_true_ones_where_there_are_such(make_corpus):
    corpus = make_corpus([sentences(d, 0, [3] * 8) for d in range(10)], max_length=64)
    lengths = {0: set(), 1: set()}
    for seed in range(300):
        example = assembled(corpus, seed % 10, seed)
        lengths[label(example)].add(len(example))
    assert lengths == {0: {27}, 1: {27}}


@pytest.fixture
def sentences_of_many_lengths(make_corpus):
    """Two hundred documents of a row of one to six sentences; a token's id tells its row, sentence and place in it."""
    lengths = PhiloxStream(3).integers(1, 9, 200 * 6).reshape(200, 6)
    documents = [
        (d, [[[10_000 * d + 100 * (s + 1) + t] for t in range(n)] for s, n in enumerate(row[: 1 + d % 6])])
        for d, row in enumerate(lengths.tolist())
    ]
    return make_corpus(documents, max_length=52)


def test_nothing_but_the_words_tells_a_random_segment(sentences_of_many_lengths):
    """Not where the segments begin and end in their sentences and rows, and not how long they are together."""
    corpus, told = sentences_of_many_lengths, {0: [], 1: []}
    for row in [row for row in range(len(corpus)) if len(corpus[row].ids) > 1]:
        for seed in range(20):
            example = assembled(corpus, row, seed)
            first, second = segments(example)
            assert first == corpus[row].ids[: len(first)].tolist()
            assert second[-1] == corpus[second[-1] // 10_000].ids[-1]
            told[label(example)].append((second[0] % 100 == 0, len(example)))
    true, random = (np.asarray(told[kind], dtype=float).mean(0) for kind in (0, 1))
    assert abs(true[0] - random[0]) < 0.05 and abs(true[1] - random[1]) < 0.5


def test_one_document_takes_a_distant_row(make_corpus):
    corpus = make_corpus([(0, [[[10 + row]] * 3, [[10 + row]] * 3]) for row in range(20)], max_length=40)
    rows = set()
    for seed in range(200):
        example = assembled(corpus, 2, seed)
        if label(example) == 1:
            (origin,) = set(segments(example)[1])
            rows.add(origin - 10)
    assert rows == {(2 + d) % 20 for d in range(5, 15)}


def test_a_corpus_of_one_row_has_true_pairs_only(make_corpus):
    corpus = make_corpus([sentences(0, 0, [3, 3])])
    assert {label(assembled(corpus, 0, seed)) for seed in range(20)} == {0}


def test_a_single_token_cannot_be_cut_and_carries_no_target(make_corpus):
    corpus = make_corpus([sentences(0, 0, [1]), sentences(1, 0, [4])])
    example = assembled(corpus, 0)
    assert example.targets == {}
    assert example.input_ids.tolist() == [CLS, 10, SEP]


def test_assembly_is_a_pure_function_of_the_stream(corpus):
    first, again = assembled(corpus, 4, 7), assembled(corpus, 4, 7)
    assert np.array_equal(first.input_ids, again.input_ids)
    assert label(first) == label(again)


def test_corrupt_changes_nothing(corpus):
    example = assembled(corpus, 4, 7)
    objective = NextSentence(NextSentenceOptions())
    assert objective.corrupt(example, corpus, PhiloxStream(0), Progress(0, 1, 0.0, 1.0)) is example


def forward_of(rows, targets, relationship):
    family = SimpleNamespace(
        causal=False, model_type="toy", pooled=lambda model, x: torch.tanh(x),
        sequence_relationship=lambda model, x: None if relationship is None else relationship(x),
    )
    model = SimpleNamespace(
        config=SimpleNamespace(hidden_size=rows.shape[1], initializer_range=0.02), dtype=torch.float32, device="cpu"
    )
    batch = SimpleNamespace(targets=targets)
    return SimpleNamespace(model=model, family=family, batch=batch, sequence_rows=lambda: rows)


@pytest.mark.parametrize("own", [True, False])
def test_loss_equals_the_definition_with_the_models_head_or_its_own(own):
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head = torch.nn.Linear(8, 2)
    targets = {"next_sentence": SimpleNamespace(index=torch.tensor([0, 3, 5]), labels=torch.tensor([1, 0, 1]))}
    forward = forward_of(rows, targets, None if own else lambda x: head(torch.tanh(x)))
    objective = NextSentence(NextSentenceOptions())
    module = objective.build(forward.model, forward.family)
    assert (module is not None) == own
    layer = module if own else head
    loss = objective.loss(forward, module, None)["next_sentence"]
    logits = [layer(torch.tanh(rows[i])) for i in (0, 3, 5)]
    expected = sum(torch.logsumexp(z, 0) - z[y] for z, y in zip(logits, (1, 0, 1), strict=True))
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_targets == 3
    assert int(loss.num_correct) == sum(int(z.argmax()) == y for z, y in zip(logits, (1, 0, 1), strict=True))


def test_a_batch_without_pairs_sums_to_zero():
    rows = torch.randn(2, 8, requires_grad=True)
    loss = NextSentence(NextSentenceOptions()).loss(forward_of(rows, {}, None), None, None)["next_sentence"]
    loss.total.backward()
    assert (loss.num_targets, loss.total.item()) == (0, 0.0)
    assert rows.grad.abs().max() == 0


def test_a_causal_family_is_refused():
    with pytest.raises(ConfigError, match="gpt2 is causal"):
        NextSentence(NextSentenceOptions()).build(None, SimpleNamespace(causal=True, model_type="gpt2"))


def test_options_out_of_range_are_named():
    with pytest.raises(ConfigError, match="random_probability is 1"):
        NextSentenceOptions(random_probability=1)
