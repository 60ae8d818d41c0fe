from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.objectives.sentence_order import SentenceOrder, SentenceOrderOptions
from tunecore.types import Progress

CLS, SEP = 2, 3
START = Progress(0, 1, 0.0, 1.0)


def numbered(make_corpus, lengths, rows=1):
    """Rows of one-piece words numbered from 10 in the order of the text, in sentences of these lengths."""
    table = []
    for row in range(rows):
        ids = iter(range(10, 10 + sum(lengths)))
        table.append((row, [[[next(ids)] for _ in range(n)] for n in lengths]))
    return make_corpus(table)


def assembled(corpus, row=0, seed=0, **options):
    return SentenceOrder(SentenceOrderOptions(**options)).assemble(corpus, row, PhiloxStream(seed, row))


def segments(example):
    ids = example.input_ids.tolist()
    middle = ids.index(SEP)
    assert ids[0] == CLS and ids[-1] == SEP
    return ids[1:middle], ids[middle + 1 : -1]


def label(example):
    target = example.targets["sentence_order"]
    assert target.level == "sequence"
    return int(target.labels[0])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=8), seed=st.integers(0, 2**32))
def test_both_segments_together_are_the_row_in_the_order_the_label_says(make_corpus, lengths, seed):
    corpus = numbered(make_corpus, lengths)
    example = assembled(corpus, seed=seed)
    first, second = segments(example)
    before, after = (second, first) if label(example) == 1 else (first, second)
    assert before + after == corpus[0].ids.tolist()
    assert len(before) in np.cumsum(lengths)[:-1]  # cut where a sentence begins
    types = example.token_type_ids.tolist()
    assert types == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_half_of_the_pairs_are_swapped_at_every_cut(make_corpus):
    corpus = numbered(make_corpus, [2, 3, 4], rows=20)
    n = 2000
    labels, cuts = np.zeros(2), {}
    for seed in range(n):
        example = assembled(corpus, seed % 20, seed)
        labels[label(example)] += 1
        size = len(segments(example)[label(example)])
        cuts[size] = cuts.get(size, 0) + 1
    assert abs(labels[1] - n / 2) < 4.5 * math.sqrt(n / 4)
    assert set(cuts) == {2, 5} and abs(cuts[2] - n / 2) < 4.5 * math.sqrt(n / 4)
    few = sum(label(assembled(corpus, seed % 20, seed, swap_probability=0.1)) for seed in range(n))
    assert abs(few - n * 0.1) < 4.5 * math.sqrt(n * 0.09)


def test_a_lone_sentence_is_cut_in_the_middle_and_a_lone_token_carries_no_target(make_corpus):
    lone = numbered(make_corpus, [5])
    assert {tuple(sorted(map(len, segments(assembled(lone, seed=s))))) for s in range(10)} == {(2, 3)}
    single = assembled(numbered(make_corpus, [1]))
    assert single.targets == {} and single.input_ids.tolist() == [CLS, 10, SEP]


def test_assembly_is_a_pure_function_of_the_stream(make_corpus):
    corpus = numbered(make_corpus, [2, 3, 4])
    first, again = assembled(corpus, seed=7), assembled(corpus, seed=7)
    assert np.array_equal(first.input_ids, again.input_ids) and label(first) == label(again)
    objective = SentenceOrder(SentenceOrderOptions())
    assert objective.corrupt(first, corpus, PhiloxStream(0), START) is first


def test_two_objectives_that_lay_out_pairs_are_refused(make_corpus):
    corpus = numbered(make_corpus, [2, 3, 4], rows=5)
    order, following = SentenceOrder(SentenceOrderOptions()), NextSentence(NextSentenceOptions())
    for first, second in ((order, following), (following, order)):
        example = first.assemble(corpus, 0, PhiloxStream(0))
        with pytest.raises(ConfigError, match=f"{first.name} and {second.name} each lay out pairs"):
            second.corrupt(example, corpus, PhiloxStream(0), START)


@pytest.mark.parametrize("own", [True, False])
def test_loss_equals_the_definition_with_the_models_head_or_its_own(own):
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head = torch.nn.Linear(8, 2)
    family = SimpleNamespace(
        causal=False, model_type="toy", pooled=lambda model, x: torch.tanh(x),
        sentence_order=lambda model, x: None if own else head(torch.tanh(x)),
    )
    model = SimpleNamespace(
        config=SimpleNamespace(hidden_size=8, initializer_range=0.02), dtype=torch.float32, device="cpu"
    )
    targets = {"sentence_order": SimpleNamespace(index=torch.tensor([0, 3, 5]), labels=torch.tensor([1, 0, 1]))}
    batch = SimpleNamespace(targets=targets)
    forward = SimpleNamespace(model=model, family=family, batch=batch, sequence_rows=lambda: rows)
    objective = SentenceOrder(SentenceOrderOptions())
    module = objective.build(model, family)
    assert (module is not None) == own
    layer = module if own else head
    loss = objective.loss(forward, module, None)["sentence_order"]
    logits = [layer(torch.tanh(rows[i])) for i in (0, 3, 5)]
    expected = sum(torch.logsumexp(z, 0) - z[y] for z, y in zip(logits, (1, 0, 1), strict=True))
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_targets == 3
    assert int(loss.num_correct) == sum(int(z.argmax()) == y for z, y in zip(logits, (1, 0, 1), strict=True))


def test_a_causal_family_and_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="gpt2 is causal"):
        SentenceOrder(SentenceOrderOptions()).build(None, SimpleNamespace(causal=True, model_type="gpt2"))
    for value in (0, 1, math.nan):
        with pytest.raises(ConfigError, match="swap_probability"):
            SentenceOrderOptions(swap_probability=value)
