"""The compiled CPU kernels of attention: which calls they take, and their arguments as they want them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tunecore.ops import _native
from tunecore.ops.reference import AttentionOptions, dropout_threshold

_DTYPES = (torch.float32, torch.bfloat16)
_MAX_WIDTH = 256
_STEP = 16
"""Head widths are multiples of it; others are padded with zeros."""


def kernels_for(q_THD: Tensor) -> ModuleType | None:
    """The compiled core where it takes such a call: float32 or bfloat16 on the CPU, head width up to 256."""
    if q_THD.device.type != "cpu" or q_THD.dtype not in _DTYPES or q_THD.shape[2] > _MAX_WIDTH:
        return None
    return _native.load()


def _rows(x_THD: Tensor) -> Tensor:
    """Width a multiple of 16, last stride 1; a view where it is so already."""
    missing = -x_THD.shape[2] % _STEP
    if missing:
        return torch.nn.functional.pad(x_THD, (0, missing))
    return x_THD if x_THD.stride(2) == 1 else x_THD.contiguous()


def _packed_options(width: int, options: AttentionOptions) -> tuple[Any, ...]:
    o = options
    scale = width**-0.5 if o.scale is None else o.scale
    key = 0 if o.rng_key is None else int(o.rng_key) & 0xFFFFFFFFFFFFFFFF
    table = None if o.relative_bias is None else o.relative_bias.to(torch.float32)
    tensors = (o.prefix_lens, o.alibi_slopes, o.row_ids, table, o.buckets)
    prefix, slopes, rows, table, buckets = (None if x is None else _native.dl(x.contiguous()) for x in tensors)
    below = dropout_threshold(o.dropout_p) if o.rng_key is not None else 0
    return o.causal, prefix, o.window or 0, scale, slopes, below, key, rows, o.site & 0xFFFFFFFF, table, buckets


def forward(
    core: ModuleType,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:
    """As :func:`tunecore.ops.reference.attention_reference`; lse_HT is float32."""
    tokens, heads, width = q_THD.shape
    q, k, v = _rows(q_THD), _rows(k_SKD), _rows(v_SKD)
    out = q_THD.new_empty((tokens, heads, q.shape[2]))
    lse = q_THD.new_empty((heads, tokens), dtype=torch.float32)
    cu_q, cu_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    tensors = (_native.dl(x) for x in (q, k, v, cu_q, cu_k, out, lse))
    core.attention(*tensors, _packed_options(width, options), _native.threads())
    return out[:, :, :width].contiguous(), lse


def backward(
    core: ModuleType,
    dout_THD: Tensor,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: AttentionOptions,
    want_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As :func:`tunecore.ops.reference.attention_backward_reference`, with dbias only where it is wanted."""
    width = q_THD.shape[2]
    dout, q, k, v, out = (_rows(x) for x in (dout_THD, q_THD, k_SKD, v_SKD, out_THD))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    table = options.relative_bias
    dbias = None if table is None or not want_dbias else lse_HT.new_empty(table.shape)
    cu_q, cu_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    tensors = (dout, q, k, v, out.contiguous(), lse_HT.contiguous(), cu_q, cu_k, dq, dk, dv, dbias)
    core.attention_backward(*map(_native.dl, tensors), _packed_options(width, options), _native.threads())
    dq, dk, dv = (x if x.shape[2] == width else x[:, :, :width].contiguous() for x in (dq, dk, dv))
    return dq, dk, dv, dbias
