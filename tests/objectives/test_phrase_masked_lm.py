from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError, DataError
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.phrase_masked_lm import PhraseMaskedLM, PhraseMaskedLMOptions
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
MASK = 4


def marked(make_corpus, units):
    """One row of units (kind "word", "phrase" or "entity", lengths of its words), its corpus, and their positions."""
    words = [n for _, lengths in units for n in lengths]
    corpus = make_corpus([(0, [[[10 + i % 80] * n for i, n in enumerate(words)]])], max_length=500)
    columns, total = corpus[0].columns, sum(words)
    for kind in ("phrase", "entity"):
        for part in ("starts", "members"):
            columns[f"{kind}_{part}"] = np.zeros(total, dtype=bool)
    at, places = 0, []
    for kind, lengths in units:
        size = sum(lengths)
        if kind != "word":
            columns[f"{kind}_starts"][at] = True
            columns[f"{kind}_members"][at : at + size] = True
        places.append((kind, frozenset(range(at + 1, at + 1 + size))))  # a special token comes first
        at += size
    return corpus, places


def corrupted(corpus, seed=0, **options):
    objective = PhraseMaskedLM(PhraseMaskedLMOptions(**options))
    example = objective.assemble(corpus, 0, PhiloxStream(seed))
    return example, objective.corrupt(example, corpus, PhiloxStream(seed), START)


units = st.lists(
    st.tuples(st.sampled_from(["word", "phrase", "entity"]), st.lists(st.integers(1, 3), min_size=1, max_size=4)).map(
        lambda unit: unit if unit[0] != "word" else ("word", unit[1][:1])
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(units, st.floats(0.05, 0.9), st.integers(0, 2**32))
def test_units_are_chosen_whole_within_the_budget_and_nothing_that_fits_is_left(make_corpus, given, rate, seed):
    corpus, places = marked(make_corpus, given)
    before, after = corrupted(corpus, seed, mask_rate=rate)
    targets = after.targets["phrase_masked_lm"]
    chosen = set(targets.index.tolist())
    assert np.array_equal(targets.labels, before.input_ids[targets.index])
    assert all(place <= chosen or not place & chosen for _, place in places)
    taken = [len(place) for _, place in places if place <= chosen]
    total = sum(len(place) for _, place in places)
    budget = max(1, round(rate * total))
    assert sum(taken) <= budget or len(taken) == 1
    if sum(taken) < budget:
        assert all(len(place) > budget - sum(taken) for _, place in places if not place <= chosen)


def test_draws_follow_the_shares(make_corpus):
    """The first unit of a long row, taken thousands of times, is of each level as often as its share says."""
    corpus, places = marked(make_corpus, [("word", [1]), ("phrase", [1, 1]), ("entity", [1])] * 40)
    for shares in ({}, {"basic_share": 2.0, "phrase_share": 5.0, "entity_share": 3.0}):
        counts, n = Counter(), 1500
        for seed in range(n):
            _, after = corrupted(corpus, seed, mask_rate=0.006, **shares)  # a budget of one unit
            first = int(after.targets["phrase_masked_lm"].index[0])
            counts[next(kind for kind, place in places if first in place)] += 1
        wanted = list(shares.values()) or [1, 1, 1]
        for kind, share in zip(("word", "phrase", "entity"), wanted, strict=True):
            p = share / sum(wanted)
            assert abs(counts[kind] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))


def test_a_share_of_zero_makes_words_of_the_level_and_words_fill_up(make_corpus):
    corpus, places = marked(make_corpus, [("word", [1]), ("phrase", [1, 1]), ("entity", [1, 2])] * 3)
    split = 0
    for seed in range(60):
        _, after = corrupted(corpus, seed, mask_rate=0.3, phrase_share=0.0)
        chosen = set(after.targets["phrase_masked_lm"].index.tolist())
        split += sum(bool(place & chosen) and not place <= chosen for kind, place in places if kind == "phrase")
        assert all(place <= chosen or not place & chosen for kind, place in places if kind == "entity")
    assert split > 5
    _, after = corrupted(corpus, 0, mask_rate=1.0, basic_share=0.0)
    assert len(after.targets["phrase_masked_lm"]) == 18


def test_a_phrase_that_touches_an_entity_falls_apart_into_words(make_corpus):
    corpus, _ = marked(make_corpus, [("phrase", [1, 1, 1]), ("word", [1]), ("phrase", [1, 1])])
    columns = corpus[0].columns
    columns["entity_starts"][2] = True
    columns["entity_members"][2:4] = True  # the phrase's last word and the word after it
    seen = set()
    for seed in range(300):
        _, after = corrupted(corpus, seed, mask_rate=0.17)  # a budget of one
        seen.add(tuple(after.targets["phrase_masked_lm"].index.tolist()))
    assert seen == {(1,), (2,), (3, 4), (5, 6)}


def test_a_phrase_cut_by_the_row_is_a_unit_as_far_as_it_is_there(make_corpus):
    corpus, _ = marked(make_corpus, [("phrase", [1, 1]), ("word", [1])])
    corpus[0].columns["phrase_starts"][0] = False  # it began in the row before
    seen = {tuple(corrupted(corpus, s, mask_rate=0.3)[1].targets["phrase_masked_lm"].index.tolist()) for s in range(40)}
    assert seen == {(1, 2), (3,)}


def test_a_unit_is_replaced_in_one_way(make_corpus):
    corpus, places = marked(make_corpus, [("phrase", [1, 1, 1, 1])] * 20)
    kinds = Counter()
    for seed in range(150):
        before, after = corrupted(corpus, seed, mask_rate=0.4)
        chosen = set(after.targets["phrase_masked_lm"].index.tolist())
        for _, place in places:
            if place <= chosen:
                at = sorted(place)
                kinds["mask" if (after.input_ids[at] == MASK).all() else
                      "kept" if np.array_equal(after.input_ids[at], before.input_ids[at]) else
                      "random" if not (after.input_ids[at] == MASK).any() else "mixed"] += 1  # fmt: skip
    total = kinds.total()
    assert total == 150 * 8 and kinds["mixed"] == 0
    for kind, p in (("mask", 0.8), ("random", 0.1), ("kept", 0.1)):
        assert abs(kinds[kind] - total * p) < 4.5 * math.sqrt(total * p * (1 - p))


def test_two_objectives_that_hide_tokens_share_a_row(make_corpus):
    corpus, _ = marked(make_corpus, [("word", [1])] * 10 + [("phrase", [1, 1])] * 5)
    example, hidden = corrupted(corpus, mask_rate=0.3)
    both = MaskedLM(MaskedLMOptions(mask_rate=0.5)).corrupt(hidden, corpus, PhiloxStream(1), START)
    first, second = (both.targets[name] for name in ("phrase_masked_lm", "masked_lm"))
    assert not set(first.index.tolist()) & set(second.index.tolist())
    for targets in (first, second):  # no mask token is ever an answer
        assert np.array_equal(targets.labels, example.input_ids[targets.index])


def test_a_corpus_without_the_columns_is_named(make_corpus):
    corpus = make_corpus([(0, [[[10], [11]]])])
    with pytest.raises(DataError, match="needs the column phrase_starts"):
        corrupted(corpus)


def test_options_are_handed_on_and_faults_are_named():
    options = PhraseMaskedLMOptions(phrases="p.txt", entities="e.txt", collocations=False, min_count=7, min_npmi=0.2)
    wanted = PhraseMaskedLM(options).phrase_options
    assert (wanted.phrases, wanted.entities, wanted.collocations) == ("p.txt", "e.txt", False)
    assert (wanted.min_count, wanted.min_npmi) == (7, 0.2)
    for faults, message in (
        ({"basic_share": -1.0}, "none may be negative"), ({"min_count": 0}, "min_count"),
        ({"min_npmi": 2.0}, "min_npmi"),
        (dict.fromkeys(("basic_share", "phrase_share", "entity_share"), 0.0), "one must be above 0"),
        ({"mask_rate": 0.0}, r"phrase_masked_lm\.mask_rate"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            PhraseMaskedLMOptions(**faults)
    with pytest.raises(ConfigError, match="gpt2 is causal"):
        PhraseMaskedLM(options).build(None, SimpleNamespace(causal=True, model_type="gpt2"))
