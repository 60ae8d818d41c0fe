"""A packed batch on the device it is computed on."""

from __future__ import annotations

import torch

from tunecore.ops.sequence_ends import same_sequence_ends
from tunecore.types import PackedBatch, PackedLayout


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """``batch`` with every tensor on ``device``; where its sequences end is read before, so that no layer has to."""
    moved = batch.to(device)
    for copy, original in zip(_lists_of_ends(moved.layout), _lists_of_ends(batch.layout), strict=True):
        same_sequence_ends(copy, original)
    return moved


def _lists_of_ends(layout: PackedLayout) -> list[torch.Tensor]:
    """Every ``cu_seqlens`` an attention call may be handed."""
    queries = None if layout.queries is None else layout.queries.cu_seqlens
    rows = None if layout.last_layer is None else layout.last_layer.cu_seqlens
    return [x for x in (layout.cu_seqlens, layout.decoder_cu_seqlens, rows, queries) if x is not None]
