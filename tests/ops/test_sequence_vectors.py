"""Sentence vectors against their definitions in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.ops.sequence_vectors import info_nce, sequence_means


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 7))
def test_means_are_those_of_each_sequence_without_the_filler(lengths, filler):
    torch.manual_seed(len(lengths))
    rows = torch.randn(sum(lengths) + filler, 4)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    want = torch.stack([part.mean(0) for part in rows[: sum(lengths)].split(lengths)])
    torch.testing.assert_close(sequence_means(rows, ends), want)


def test_means_are_float32_at_least():
    ends = torch.tensor([0, 999])
    assert sequence_means(torch.ones(1000, 2, dtype=torch.bfloat16), ends).dtype == torch.float32
    assert sequence_means(torch.ones(1000, 2, dtype=torch.float64), ends).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_is_the_cross_entropy_of_cosines_within_each_group(temperature):
    torch.manual_seed(0)
    vectors, others = torch.randn(5, 8), torch.randn(8, 8)
    group_n, group_m, own = [0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0], [0, 2, 3, 5, 6]
    total = hits = 0.0
    for i in range(5):
        scores = {
            j: float(torch.cosine_similarity(vectors[i], others[j], dim=0)) / temperature
            for j in range(8) if group_m[j] == group_n[i]
        }  # fmt: skip
        total += math.log(sum(math.exp(score) for score in scores.values())) - scores[own[i]]
        hits += max(scores, key=scores.__getitem__) == own[i]
    told = info_nce(vectors, others, torch.tensor(own), torch.tensor(group_n), torch.tensor(group_m), temperature)
    assert told.total.item() == pytest.approx(total, rel=1e-4)
    assert int(told.num_correct) == hits
