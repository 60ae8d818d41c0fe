"""One vector a sequence, and telling them apart: what objectives and heads over sentence vectors share.

Shape letters: T tokens in the batch, B sequences, N vectors to compare, M vectors they are compared with, E width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def sequence_means(hidden_TE: Tensor, ends: Tensor) -> Tensor:
    """The mean of each sequence's rows: [T, E], int64 [B + 1] (where each starts and the last ends) -> [B, E].

    Summed and returned in float32 at least. Rows from the last end on (a filler) belong to no sequence.
    """
    lengths_B = ends.diff()
    sequence_T = torch.repeat_interleave(lengths_B)
    rows_TE = hidden_TE[: sequence_T.shape[0]].to(torch.promote_types(hidden_TE.dtype, torch.float32))
    sums_BE = rows_TE.new_zeros(len(lengths_B), hidden_TE.shape[1]).index_add(0, sequence_T, rows_TE)
    return sums_BE / lengths_B[:, None]


class Told(NamedTuple):
    """What :func:`info_nce` returns."""

    total: Tensor
    """Scalar, summed over the N vectors."""
    num_correct: Tensor
    """How many of them are nearer to their own counterpart than to any other."""


def info_nce(
    vectors_NE: Tensor, others_ME: Tensor, counterparts_N: Tensor, group_N: Tensor, group_M: Tensor, temperature: float
) -> Told:
    """InfoNCE (van den Oord, Li and Vinyals 2018, arXiv:1807.03748) over cosine similarities, within groups, in fp32.

    Args:
        vectors_NE: [N, E].
        others_ME: [M, E], counterparts and what they are told from.
        counterparts_N: int64, which of the M is each one's own; it lies in the same group.
        group_N: int64; a vector is compared with those of its group only.
        group_M: int64.
        temperature: similarities are divided by it.
    """
    scores_NM = F.normalize(vectors_NE.float(), dim=-1) @ F.normalize(others_ME.float(), dim=-1).T / temperature
    scores_NM = scores_NM.masked_fill(group_N[:, None] != group_M[None, :], float("-inf"))
    total = F.cross_entropy(scores_NM, counterparts_N, reduction="sum")
    return Told(total, (scores_NM.detach().argmax(-1) == counterparts_N).sum())
