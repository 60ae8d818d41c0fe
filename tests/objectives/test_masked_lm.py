from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.masking import Units, choose_spans, free_positions, geometric_lengths
from tunecore.objectives.vocabulary import random_ids, special_ids, vocabulary_loss
from tunecore.types import Progress, Targets

START = Progress(0, 100, 0.0, 1.0)
SPECIAL = {0, 2, 3, 4}


def plain_row(length, seed=0):
    """A row of one-piece words with ids 10, ..., 99."""
    ids = np.random.default_rng(seed).integers(10, 100, length)
    return (0, [[[int(i)] for i in ids]])


def corrupted(objective, corpus, row=0, seed=0, progress=START):
    stream = PhiloxStream(seed, row, purpose="test")
    example = objective.assemble(corpus, row, stream)
    return example, objective.corrupt(example, corpus, stream.child("corrupt"), progress)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 60), rate=st.floats(0.01, 1.0), seed=st.integers(0, 2**32))
def test_exact_count_specials_untouched_and_labels_are_the_originals(make_corpus, length, rate, seed):
    corpus = make_corpus([plain_row(length, seed)])
    before, after = corrupted(MaskedLM(MaskedLMOptions(mask_rate=rate)), corpus, seed=seed)
    targets = after.targets["masked_lm"]
    assert len(targets) == max(1, round(rate * length))
    assert len(set(targets.index.tolist())) == len(targets)
    assert not before.columns["special"][targets.index].any()
    assert np.array_equal(targets.labels, before.input_ids[targets.index])
    untouched = np.setdiff1d(np.arange(len(before)), targets.index)
    assert np.array_equal(after.input_ids[untouched], before.input_ids[untouched])
    replaced = after.input_ids[targets.index]
    assert set(replaced.tolist()) & SPECIAL <= {4}
    assert (replaced < 100).all()


def test_choice_and_replacement_are_uniform_and_80_10_10(make_corpus):
    length, draws = 50, 800
    corpus = make_corpus([(0, [[[10]] * length])])  # every token is 10, so a random token is one of 95 others or 10
    objective = MaskedLM(MaskedLMOptions(mask_rate=0.2))
    per_position, masked, kept, other, seen = np.zeros(length + 2), 0, 0, 0, set()
    for seed in range(draws):
        _, after = corrupted(objective, corpus, seed=seed)
        index = after.targets["masked_lm"].index
        per_position[index] += 1
        ids = after.input_ids[index]
        masked += int((ids == 4).sum())
        kept += int((ids == 10).sum())
        other += int(((ids != 4) & (ids != 10)).sum())
        seen |= set(ids.tolist())
    n = draws * 10
    for count, p in ((masked, 0.8), (kept, 0.1 + 0.1 / 96), (other, 0.1 * 95 / 96)):
        assert abs(count - n * p) < 4.5 * math.sqrt(n * p * (1 - p))
    assert np.abs(per_position[1:-1] - draws * 0.2).max() < 4.5 * math.sqrt(draws * 0.2 * 0.8)
    assert len(seen) == 97  # mask, 10, and all 95 other ordinary ids turn up


def test_same_stream_same_masks_other_stream_others(make_corpus):
    corpus = make_corpus([plain_row(60)])
    objective = MaskedLM(MaskedLMOptions())
    first, again, other = (corrupted(objective, corpus, seed=s)[1] for s in (1, 1, 2))
    assert np.array_equal(first.input_ids, again.input_ids)
    assert np.array_equal(first.targets["masked_lm"].index, again.targets["masked_lm"].index)
    assert not np.array_equal(first.targets["masked_lm"].index, other.targets["masked_lm"].index)


def test_corrupt_leaves_the_given_example_alone(make_corpus):
    corpus = make_corpus([plain_row(30)])
    before, _ = corrupted(MaskedLM(MaskedLMOptions(mask_rate=0.9)), corpus)
    assert np.array_equal(before.input_ids, corpus.add_special(corpus[0]).input_ids)
    assert before.targets == {}


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(1, 5), min_size=1, max_size=20), rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**32)
)
def test_whole_words_are_chosen_whole_within_the_budget(make_corpus, words, rate, seed):
    ids = iter(range(5, 5 + sum(words)))
    corpus = make_corpus([(0, [[[next(ids) % 90 + 10 for _ in range(n)] for n in words]])])
    objective = MaskedLM(MaskedLMOptions(mask_rate=rate, whole_word=True))
    assert objective.columns == ("word_starts",)
    _, after = corrupted(objective, corpus, seed=seed)
    chosen = set(after.targets["masked_lm"].index.tolist())
    position, picked = 1, []
    for n in words:
        span = set(range(position, position + n))
        assert span <= chosen or not span & chosen
        if span <= chosen:
            picked.append(n)
        position += n
    budget = max(1, round(rate * sum(words)))
    assert len(chosen) <= budget or picked == [len(chosen)]
    left = list(words)
    for n in picked:
        left.remove(n)
    if len(chosen) < budget:  # nothing that is left would still fit
        assert all(n > budget - len(chosen) for n in left)


def test_a_word_ends_at_a_special_token_even_where_a_chunk_was_cut_inside_a_word(make_corpus):
    corpus = make_corpus([(0, [[[10, 11, 12]]]), (1, [[[20, 21, 22]]])])
    first, second = corpus[0], corpus[1]
    second.columns["word_starts"][:] = False  # a chunk that begins in the middle of a word
    example = corpus.add_special(first, second)
    objective = MaskedLM(MaskedLMOptions(mask_rate=0.5, whole_word=True))
    seen = set()
    for seed in range(20):
        after = objective.corrupt(example, corpus, PhiloxStream(seed), START)
        seen.add(tuple(after.targets["masked_lm"].index.tolist()))
    assert seen == {(1, 2, 3), (5, 6, 7)}


def test_a_word_longer_than_the_budget_is_taken_when_it_is_first(make_corpus):
    corpus = make_corpus([(0, [[[10, 11, 12, 13]]])])
    _, after = corrupted(MaskedLM(MaskedLMOptions(mask_rate=0.1, whole_word=True)), corpus)
    assert after.targets["masked_lm"].index.tolist() == [1, 2, 3, 4]


def test_an_example_of_special_tokens_alone_gets_no_targets(make_corpus):
    corpus = make_corpus([(0, [])])
    _, after = corrupted(MaskedLM(MaskedLMOptions()), corpus)
    assert after.targets == {}


def test_mask_rate_moves_linearly_to_its_end():
    objective = MaskedLM(MaskedLMOptions(mask_rate=0.3, mask_rate_end=0.1))
    rates = [objective.mask_rate(Progress(step, 5, 0.0, 1.0)) for step in range(7)]
    assert rates == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1])
    assert MaskedLM(MaskedLMOptions()).mask_rate(Progress(3, 5, 0.0, 1.0)) == 0.15
    assert [objective.mask_rate(Progress(step, 1, 0.0, 1.0)) for step in (0, 1)] == pytest.approx([0.3, 0.1])


def test_random_ids_cover_exactly_the_ordinary_vocabulary(make_corpus):
    corpus = make_corpus([plain_row(3)])
    corpus.vocab_size = 9
    assert special_ids(corpus).tolist() == [0, 2, 3, 4]
    draws = random_ids(corpus, PhiloxStream(0), 3000)
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [1, 5, 6, 7, 8]
    assert np.abs(counts - 600).max() < 4.5 * math.sqrt(3000 * 0.2 * 0.8)


def test_a_causal_family_is_refused():
    with pytest.raises(ConfigError, match="gpt2 is causal"):
        MaskedLM(MaskedLMOptions()).build(None, SimpleNamespace(causal=True, model_type="gpt2"))
    assert MaskedLM(MaskedLMOptions()).build(None, SimpleNamespace(causal=False, model_type="bert")) is None


def test_a_tokenizer_without_a_mask_token_is_named(make_corpus):
    corpus = make_corpus([plain_row(8)])
    corpus.mask_id = None
    with pytest.raises(ConfigError, match="mask token"):
        corrupted(MaskedLM(MaskedLMOptions()), corpus)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": 0.0}, "mask_rate is 0"),
        ({"mask_rate": 1.5}, "mask_rate is 1.5"),
        ({"mask_rate_end": -0.1}, "mask_rate_end"),
        ({"mask_probability": 0.9, "random_probability": 0.2}, "at most 1"),
        ({"random_probability": -0.1}, "negative"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"z_loss": math.nan}, "z_loss"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MaskedLMOptions(**options)


def naive_forward(targets, hidden, weight, bias):
    family = SimpleNamespace(token_head=lambda model, rows: (torch.tanh(rows), weight, bias))
    batch = SimpleNamespace(targets=targets)
    return SimpleNamespace(batch=batch, model=None, family=family, hidden=lambda: hidden)


def test_loss_equals_the_definition_at_the_target_rows():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator).requires_grad_() for s in ((11, 8), (17, 8), (17,)))
    index, labels = torch.tensor([1, 4, 4, 10]), torch.tensor([3, 0, 16, 5])
    forward = naive_forward({"masked_lm": SimpleNamespace(index=index, labels=labels)}, hidden, weight, bias)
    objective = MaskedLM(MaskedLMOptions(label_smoothing=0.1, z_loss=0.01))
    loss = objective.loss(forward, None, None)["masked_lm"]
    loss.total.backward()
    got = [x.grad.clone() for x in (hidden, weight, bias)]
    for x in (hidden, weight, bias):
        x.grad = None
    expected = torch.zeros((), dtype=torch.float64)
    for i, y in zip(index.tolist(), labels.tolist(), strict=True):
        logits = torch.tanh(hidden[i]).double() @ weight.double().T + bias.double()
        log_z = torch.logsumexp(logits, 0)
        log_p = logits - log_z
        expected = expected - 0.9 * log_p[y] - 0.1 * log_p.mean() + 0.01 * log_z**2
    expected.backward()
    assert loss.num_targets == 4
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, x in zip(got, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(mine, x.grad, rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_sums_to_zero_and_can_be_differentiated():
    hidden = torch.randn(8, 4, requires_grad=True)
    forward = naive_forward({}, hidden, torch.randn(5, 4), None)
    loss = vocabulary_loss(forward, "masked_lm", label_smoothing=0.0, z_loss=0.0)
    loss.total.backward()
    assert loss.num_targets == 0
    assert loss.total.item() == 0.0
    assert hidden.grad.abs().max() == 0


SPANS = MaskedLMOptions(span=True, mask_rate=0.3)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(1, 5), min_size=1, max_size=30), rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**32)
)
def test_spans_are_of_whole_words_and_fill_the_budget(make_corpus, words, rate, seed):
    corpus = make_corpus([(0, [[[10 + w] * n for w, n in enumerate(words)]])])
    _, after = corrupted(MaskedLM(MaskedLMOptions(span=True, mask_rate=rate)), corpus, seed=seed)
    chosen = set(after.targets["masked_lm"].index.tolist())
    starts = np.cumsum([1, *words])
    whole = [set(range(starts[w], starts[w] + n)) for w, n in enumerate(words)]
    assert all(word <= chosen or not word & chosen for word in whole)
    budget = max(1, round(rate * sum(words)))
    taken = [n for word, n in zip(whole, words, strict=True) if word <= chosen]
    assert sum(taken) <= budget or len(taken) == 1
    if sum(taken) < budget:  # no word that is left would still fit
        assert all(n > budget - sum(taken) for word, n in zip(whole, words, strict=True) if not word <= chosen)


def test_span_lengths_are_geometric_and_cut_off(make_corpus):
    """A span that has room around it is as long as was drawn: counted where the first span of a row stands alone."""
    p, longest, n = 0.2, 10, 3000
    weights = np.array([p * (1 - p) ** k for k in range(longest)])
    expected = weights / weights.sum()
    assert (expected * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.05)  # the mean the paper gives
    units = Units.of_tokens(np.arange(1000))
    counts = np.zeros(longest + 1)
    for seed in range(n):
        (first, *_) = choose_spans(units, 40, geometric_lengths(p, longest), PhiloxStream(seed))
        if first[0] < 1000 - longest:
            counts[len(first)] += 1
    total = counts.sum()
    deviation = np.abs(counts[1:] - total * expected) / np.sqrt(total * expected * (1 - expected))
    assert deviation.max() < 4.5


def test_a_span_is_replaced_in_one_way(make_corpus):
    corpus = make_corpus([(0, [[[10]] * 60])])
    kinds = {"mask": 0, "random": 0, "kept": 0}
    for seed in range(400):
        _, after = corrupted(MaskedLM(SPANS), corpus, seed=seed)
        index = after.targets["masked_lm"].index
        for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1):
            ids = after.input_ids[run]
            if len(run) > 4:  # may be two spans side by side
                continue
            if (ids == 4).all():
                kinds["mask"] += 1
            elif (ids == 10).all():
                kinds["kept"] += 1
            elif not (ids == 4).any():
                kinds["random"] += 1
    total = sum(kinds.values())
    assert total > 1000
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.05)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.03)
    assert kinds["kept"] / total == pytest.approx(0.1, abs=0.03)


def test_spans_never_run_over_a_special_token_or_a_target_of_another_objective(make_corpus):
    corpus = make_corpus([(0, [[[10]] * 6]), (1, [[[20]] * 6])])
    example = corpus.add_special(corpus[0], corpus[1])
    asked = replace(example, targets={"other_lm": Targets(np.array([3, 4]), np.array([10, 10]))})
    objective = MaskedLM(MaskedLMOptions(span=True, mask_rate=1.0))
    after = objective.corrupt(asked, corpus, PhiloxStream(0), START)
    assert after.targets["masked_lm"].index.tolist() == [1, 2, 5, 6, 8, 9, 10, 11, 12, 13]
    assert after.targets["other_lm"] is asked.targets["other_lm"]
    spans = choose_spans(
        Units.of_words(example, free_positions(asked)), 10, [0.0] * 9 + [1.0], PhiloxStream(0)
    )
    assert all((np.diff(span) == 1).all() for span in spans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": True, "whole_word": True}, "both set"),
        ({"span_stop_probability": 0.0}, "span_stop_probability"),
        ({"span_max_words": 0}, "span_max_words"),
    ],
)
def test_span_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MaskedLMOptions(**options)
