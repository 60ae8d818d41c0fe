"""Schemes of tags: spans as seqeval and conlleval read them, and well-formed sequences by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from tunecore.heads.tags import (
    Grammar,
    Span,
    complete_labels,
    continuation,
    is_chunk_scheme,
    single_spans,
    spans_of,
    split_tag,
)

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("per", "a-b"))]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(TAGS)))
def test_spans_are_those_of_seqeval(tags):
    ours = [(span.type, span.first, span.stop - 1) for span in spans_of(tags)]
    assert ours == get_entities(tags)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["O", "B", "I", "E", "S"])))
def test_spans_without_types_are_those_of_seqeval(tags):
    assert [(span.type, span.first, span.stop - 1) for span in spans_of(tags)] == get_entities(tags)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-a I-a B-a O I-b", [("a", 0, 2), ("a", 2, 3), ("b", 4, 5)]),  # IOB1
        ("B-a I-a B-a O B-b", [("a", 0, 2), ("a", 2, 3), ("b", 4, 5)]),  # IOB2
        ("B-a E-a S-a O S-b", [("a", 0, 2), ("a", 2, 3), ("b", 4, 5)]),  # BIOES
        ("B-a L-a U-a O U-b", [("a", 0, 2), ("a", 2, 3), ("b", 4, 5)]),  # BILOU
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),
        ("", []),
    ],
)
def test_schemes_are_read_alike(tags, expected):
    assert list(spans_of(tags.split())) == [Span(*span) for span in expected]


def test_other_tags_mark_a_word_each():
    assert list(single_spans(["NOUN", "NOUN", "O", "VERB"])) == [("NOUN", 0, 1), ("NOUN", 1, 2), ("VERB", 3, 4)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-x"], True), (["B", "I", "O"], True), (["U-x", "L-x"], True), (["O"], False), (["NOUN", "O"], False),
        (["B-x", "X-y"], False), (["1", "2"], False), ([], False), (["B-"], False),
    ],
)  # fmt: skip
def test_a_scheme_is_known_by_its_tags(labels, expected):
    assert is_chunk_scheme(labels) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["I-b", "B-a", "O", "B-b"], "O B-a I-a B-b I-b"),
        (["B-a"], "O B-a"),
        (["I-b", "I-a"], "O I-a I-b"),
        (["S-a", "E-b", "O", "B-b", "I-a"], "O B-a I-a E-a S-a B-b I-b E-b S-b"),
        (["I", "B"], "O B I"),
        (["VERB", "ADJ", "O"], "O ADJ VERB"),
        (["10", "9", "0"], "0 9 10"),
    ],
)
def test_labels_are_ordered_and_completed(found, expected):
    assert complete_labels(found) == tuple(expected.split())


def test_split_and_continuation():
    assert [split_tag(tag) for tag in ("O", "B-a-b", "U-x", "L", "I")] == [
        ("O", ""), ("B", "a-b"), ("S", "x"), ("E", "_"), ("I", "_"),
    ]  # fmt: skip
    labels = ("O", "B-a", "I-a", "B-b", "B", "I")
    assert [continuation(tag, labels) for tag in labels] == ["O", "I-a", "I-a", "B-b", "I", "I"]
    assert continuation("BAR", ("BAR", "IAR")) == "BAR"


SCHEMES = [
    ("O", "B-x", "I-x", "B-y", "I-y"),
    ("O", "B-x", "I-x", "E-x", "S-x"),
    ("O", "B", "I", "L", "U"),
    ("O", "I-x", "I-y"),
    ("O", "B-x", "I-x", "I-y"),
    ("NOUN", "VERB"),
]


def is_well_formed(tags):
    """Spans as they are said, not as conlleval mends them."""
    closing = {split_tag(tag)[1] for tag in tags[0] if split_tag(tag)[0] == "E"}
    opening = {split_tag(tag)[1] for tag in tags[0] if split_tag(tag)[0] == "B"}
    open_kind = None  # the type of a span that is open
    must_go_on = False
    for tag in tags[1]:
        prefix, kind = split_tag(tag)
        inner = prefix in "IE" and kind in opening
        if inner and open_kind != kind:
            return False
        if not inner and must_go_on:
            return False
        open_kind = kind if prefix in "BI" else None
        must_go_on = open_kind is not None and kind in closing and kind in opening
    return not must_go_on


@pytest.mark.parametrize("labels", SCHEMES, ids=" ".join)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_best_path_is_the_best_of_all_well_formed_ones(labels, data):
    length = data.draw(st.integers(0, 4))
    row = st.lists(st.floats(-5, 0), min_size=len(labels), max_size=len(labels))
    scores = np.asarray(data.draw(st.lists(row, min_size=length, max_size=length))).reshape(length, len(labels))
    path = Grammar(labels).best_path(scores)
    paths = itertools.product(range(len(labels)), repeat=length)
    good = [p for p in paths if is_well_formed((labels, [labels[i] for i in p]))]
    best = max(sum(scores[w, c] for w, c in enumerate(p)) for p in good)
    assert tuple(path) in good
    assert sum(scores[w, c] for w, c in enumerate(path)) == pytest.approx(best)
