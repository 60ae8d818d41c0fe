"""Groups of rows: the same ones on any number of ranks, in any split, in training and in evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.loader import StepLoader, eval_batches
from tunecore.data.packing import pack
from tunecore.data.rows import whole_groups
from tunecore.errors import ConfigError
from tunecore.types import Example, Targets


class GroupedRows:
    """Two examples a row; rows of view "one" stand alone, those of "many" go in threes."""

    views = ("one", "many")
    group_sizes = {"many": 3}

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def examples(self, row_id, epoch, progress, view):
        target = {view: Targets.of_sequence(row_id)}
        ids = [np.full(1 + row_id % 5, row_id, dtype=np.int64) for _ in range(2)]
        return [Example(row_id, ids[0], targets=target), Example(row_id + self.count, ids[1])]


def groups(batches):
    """Sets of rows that are together in a group; no group may come twice."""
    found = {}
    for number, batch in enumerate(batches):
        for group, row in zip(batch.groups, batch.row_ids, strict=True):
            found.setdefault((number, group), set()).add(row)
    return sorted(map(tuple, map(sorted, found.values())))


def loader(rows, rank=0, world_size=1, **options):
    settings = {"batch_size": 12, "seed": 1, "total_steps": 4, "max_tokens": 40, "position_offset": 0, "pad_id": 0}
    return StepLoader(rows, rank=rank, world_size=world_size, view="many", **{**settings, **options})


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(1, 3), st.sampled_from([8, 64, 10_000]), st.integers(0, 3))
def test_groups_are_those_of_the_step_whatever_the_ranks_and_the_split(count, world_size, parts, max_tokens, step):
    rows = GroupedRows(count)
    expected = groups(loader(rows).step(step).micro_batches)
    found, seen = [], []
    for rank in range(world_size):
        made = loader(rows, rank, world_size, max_tokens=max_tokens, accumulation=parts).step(step)
        found += groups(made.micro_batches)
        seen += made.row_ids
    assert sorted(found) == expected
    assert sorted(seen) == sorted(r for group in expected for r in group if r < count)
    assert all(len(group) == 6 for group in expected[:-1]) or min(map(len, expected)) < 6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.integers(1, 4), st.sampled_from([30, 5000]))
def test_evaluation_has_the_same_groups_on_any_number_of_ranks(count, world_size, max_tokens):
    rows = GroupedRows(count)
    options = {"max_tokens": max_tokens, "position_offset": 0, "pad_id": 0, "view": "many"}
    expected = groups(eval_batches(rows, **options))
    assert sum(len(group) == 6 for group in expected) == count // 3
    found = []
    for rank in range(world_size):
        found += groups(eval_batches(rows, rank=rank, world_size=world_size, **options))
    assert sorted(found) == expected


@given(st.lists(st.integers(0, 99), unique=True), st.integers(1, 5))
def test_rows_that_stand_alone_are_dealt_out_one_by_one(row_ids, world_size):
    rows = np.asarray(row_ids, dtype=np.int64)
    for rank in range(world_size):
        assert whole_groups(rows, 1, rank, world_size).tolist() == row_ids[rank::world_size]


def test_a_batch_size_that_cuts_groups_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size is 10.*groups of 3"):
        loader(GroupedRows(30), batch_size=10)


def test_steps_take_turns_and_evaluation_sees_every_view():
    rows = GroupedRows(24)
    settings = {"batch_size": 6, "seed": 5, "total_steps": 40, "max_tokens": 64, "position_offset": 0, "pad_id": 0}
    every, turns = (StepLoader(rows, view_weights=w, **settings) for w in (None, {"one": 3.0, "many": 1.0}))
    assert all(s.views == ("one", "many") == tuple(dict.fromkeys(b.view for b in s.micro_batches)) for s in every)
    seen = []
    for step in turns:
        assert {batch.view for batch in step.micro_batches} == set(step.views) and len(step.views) == 1
        seen += step.views
    assert seen.count("one") == 30
    later = StepLoader(rows, view_weights={"one": 3.0, "many": 1.0}, start_step=17, **settings)
    assert [s.views[0] for s in later] == seen[17:]
    assert {b.view for b in eval_batches(rows, max_tokens=64, position_offset=0, pad_id=0)} == {"one", "many"}


def test_positions_of_an_example_are_packed_with_the_familys_offset():
    positions = np.array([0, 1, 0, 1, 2])
    examples = [Example(0, np.arange(3)), Example(1, np.arange(5), position_ids=positions), Example(2, np.arange(2))]
    (batch,) = pack(examples, max_tokens=64, position_offset=2, pad_id=0)
    assert batch.position_ids[0, :10].tolist() == [2, 3, 4, *(positions + 2), 2, 3]
    assert batch.groups == (-1, -1, -1)
