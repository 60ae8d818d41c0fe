"""Windows over units: everything is covered, nothing is too long, and each unit has the most context there is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.windows import Window, cut_windows, most_context


@st.composite
def texts(draw):
    """(sizes, room, overlap)."""
    room = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, room), max_size=40))
    return np.asarray(sizes, dtype=np.int64), room, draw(st.integers(0, room))


@settings(deadline=None, max_examples=60)
@given(texts())
def test_windows_cover_every_unit_and_are_as_full_as_can_be(text):
    sizes, room, overlap = text
    windows = cut_windows(sizes, room, overlap)
    assert windows[0].first == 0 and windows[-1].stop == len(sizes)
    for first, stop in windows:
        assert sizes[first:stop].sum() <= room
        assert stop == len(sizes) or sizes[first : stop + 1].sum() > room
    for (first, stop), (after, further) in pairwise(windows):
        assert first < after <= stop < further
        assert sizes[after:stop].sum() <= overlap
        # One unit earlier would share too much, leave no room for what comes, or be no step forward.
        earlier = after - 1
        assert earlier == first or sizes[earlier:stop].sum() > overlap or sizes[earlier : stop + 1].sum() > room


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(2, 30), st.integers(0, 29))
def test_pieces_alone_are_cut_as_the_tokenizers_library_cuts_them(total, room, overlap):
    overlap = min(overlap, room - 1)
    windows = cut_windows(np.ones(total, dtype=np.int64), room, overlap)
    starts = [0]
    while starts[-1] + room < total:
        starts.append(starts[-1] + room - overlap)
    assert windows == [Window(start, min(start + room, total)) for start in starts]


@settings(deadline=None, max_examples=60)
@given(texts())
def test_each_unit_is_read_where_the_nearest_cut_is_farthest(text):
    sizes, room, overlap = text
    windows = cut_windows(sizes, room, overlap)
    chosen = most_context(sizes, windows)
    for unit, window in enumerate(chosen):
        contexts = {}
        for number, (first, stop) in enumerate(windows):
            if first <= unit < stop:
                left = sizes[first:unit].sum() if first else np.inf
                right = sizes[unit + 1 : stop].sum() if stop < len(sizes) else np.inf
                contexts[number] = min(left, right)
        assert window == max(contexts, key=lambda number: (contexts[number], -number))


def test_a_text_without_units_is_one_empty_window():
    assert cut_windows(np.empty(0, np.int64), 5, 2) == [Window(0, 0)]
    assert most_context(np.empty(0, np.int64), [Window(0, 0)]).tolist() == []
