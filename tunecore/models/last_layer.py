"""The last layer of an encoder, computed only at the rows that somebody reads; keys and values still come from all.

A masked-LM loss reads the 15 % of rows that have a target, a classifier one row a sequence: five sixths of the last
layer (its queries, output and feed-forward layers) are of no use at the other rows. What is computed is exact; the
other rows of the result are zero. (The idea: NVIDIA's MLPerf BERT, and the ``last_layer_subset`` of flash-attention.)

Shape letters: T tokens in the batch, N rows that are read, H heads, D head width, E hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tunecore.models.fused import is_unhooked, swapped_class
from tunecore.models.packed import ATTENTION, attention_forward
from tunecore.types import PackedBatch, PackedLayout, RowSubset

_MOST_ROWS = 0.6  # of the batch; above, gathering and scattering cost what is saved
_LAYERS = frozenset(
    (f"transformers.models.{name}.modeling_{name}", f"{kind}Layer")
    for name, kind in (
        ("bert", "Bert"), ("roberta", "Roberta"), ("electra", "Electra"), ("xlm_roberta", "XLMRoberta"),
        ("ernie", "Ernie"),
    )
)  # fmt: skip
"""(module, class) of the layers this knows; by name, so that no model's code is imported for it."""


class NarrowLayer(nn.Module):
    """A BERT-like layer that runs at ``packed.last_layer.rows`` only, where a layout has them."""

    attention: Any
    intermediate: nn.Module
    output: nn.Module

    def forward(
        self, hidden_states: Tensor, *args: Any, packed: PackedLayout | None = None, **kwargs: Any
    ) -> Tensor:
        """[1, T, E] -> [1, T, E], zero at the rows that nobody reads."""
        if packed is not None:
            if packed.last_layer is None or not _is_served(self, args, kwargs):
                packed = packed._replace(last_layer=None)
            else:
                return self._at_rows(hidden_states, packed, packed.last_layer)
        result: Tensor = super().forward(hidden_states, *args, packed=packed, **kwargs)
        return result

    def _at_rows(self, hidden_1TE: Tensor, packed: PackedLayout, subset: RowSubset) -> Tensor:
        inner = self.attention.self
        heads = (1, -1, inner.num_attention_heads, inner.attention_head_size)
        read_1NE = hidden_1TE.index_select(1, subset.rows)
        q_1HND, k_1HTD, v_1HTD = (
            projection(x).view(heads).transpose(1, 2)
            for projection, x in ((inner.query, read_1NE), (inner.key, hidden_1TE), (inner.value, hidden_1TE))
        )
        context, _ = attention_forward(
            inner, q_1HND, k_1HTD, v_1HTD, None, dropout=inner.dropout.p if inner.training else 0.0,
            scaling=inner.scaling, packed=packed._replace(queries=subset, last_layer=None),
        )  # fmt: skip
        mid_1NE = self.attention.output(context.reshape(*read_1NE.shape[:2], -1), read_1NE)
        out_1NE = self.output(self.intermediate(mid_1NE), mid_1NE)
        return torch.zeros_like(hidden_1TE).index_copy(1, subset.rows, out_1NE)


def install(model: nn.Module) -> bool:
    """Let the last layer of ``model`` run at some rows only; returns whether it is one that can.

    The class of that one module is swapped, state dict unchanged.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, NarrowLayer) or _is_known(m)]
    if not layers or layers[-1].is_decoder:
        return False
    kind: Any = type(layers[-1])
    if not issubclass(kind, NarrowLayer):
        layers[-1].__class__ = swapped_class(NarrowLayer, kind)
    return True


def _is_known(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__name__) in _LAYERS


def narrow(batch: PackedBatch, reads: Iterable[str]) -> PackedBatch:
    """The batch with the rows that are read in its layout.

    Args:
        batch: one micro-batch.
        reads: "targets" (the rows with a token-level target), "sequence_rows" (the first of each sequence).

    Returns: the batch itself where most rows are read, or where a query's place in its sequence decides what it sees.
    """
    layout = batch.layout
    starts = layout.cu_seqlens
    if layout.prefix_lens is not None:
        return batch
    is_read_T = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool, device=starts.device)
    for what in reads:
        if what == "sequence_rows":
            is_read_T[starts[: batch.num_sequences].long()] = True
        else:
            for target in batch.targets.values():
                if target.level == "token":
                    is_read_T[target.index] = True
    rows = is_read_T.nonzero()[:, 0]
    if rows.numel() > _MOST_ROWS * is_read_T.numel() or not rows.numel():
        return batch
    before_T = torch.cat((starts.new_zeros(1), is_read_T.cumsum(0, dtype=starts.dtype)))
    cu_seqlens = before_T.index_select(0, starts.long())
    subset = RowSubset(rows, cu_seqlens, int(cu_seqlens.diff().max()))
    return replace(batch, layout=layout._replace(last_layer=subset))


def _is_served(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the layer's own forward would do just what :meth:`NarrowLayer._at_rows` does."""
    attention = layer.attention
    if any(x is not None for x in args) or kwargs.get("sliding_window") is not None:
        return False
    if any(kwargs.get(name) is not None for name in ("attention_mask", "encoder_hidden_states", "past_key_values")):
        return False
    inner = attention.self
    plain = is_unhooked(attention) and is_unhooked(inner) and not inner.is_causal and not layer.is_decoder
    return plain and inner.config._attn_implementation == ATTENTION
