"""A packed batch on the device it is computed on."""

from __future__ import annotations

import torch

from tunecore.ops.sequence_ends import same_sequence_ends
from tunecore.types import PackedBatch


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """``batch`` with every tensor on ``device``; where its sequences end is read before, so that no layer has to."""
    moved = batch.to(device)
    for name in ("cu_seqlens", "decoder_cu_seqlens"):
        original = getattr(batch.layout, name)
        if original is not None:
            same_sequence_ends(getattr(moved.layout, name), original)
    return moved
