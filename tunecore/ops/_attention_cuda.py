"""The CUDA kernels of attention: which calls they take, and their arguments as they want them.

Shape letters: T query tokens, S key tokens, H heads, K kv-heads, D head width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tunecore.ops import _cuda
from tunecore.ops._attention_layout import Attention, AttentionRows
from tunecore.ops.reference import AttentionOptions, dropout_threshold

_DTYPES = (torch.bfloat16, torch.float16)
_WIDTHS = (16, 32, 64, 80, 96, 128, 256)
"""Heads of other widths are padded with zeros to the next one; as in csrc/attention/attention.cu."""
_MOST_BACKWARD = 128
_MOST_REACH = 512
"""Of the distances of a bias that has a gradient."""
_ALIGNMENT = 8
"""Elements: rows begin at multiples of 16 bytes."""


def serves(q_THD: Tensor) -> bool:
    """Whether the forward kernel takes the call: bfloat16 or float16, heads of at most 256, the library loaded."""
    return q_THD.dtype in _DTYPES and q_THD.shape[2] <= _WIDTHS[-1] and _cuda.serves(q_THD)


def serves_backward(q_THD: Tensor, options: AttentionOptions, want_dbias: bool) -> bool:
    """Whether the backward kernels do: heads of at most 128, a bias that wants a gradient of at most 512 distances."""
    far = want_dbias and options.buckets is not None and options.buckets.shape[0] // 2 > _MOST_REACH
    return q_THD.shape[2] <= _MOST_BACKWARD and not far and serves(q_THD)


def _padded(x_THD: Tensor) -> Tensor:
    """Of a width that has a kernel, in rows that begin at multiples of 16 bytes; a view where it is so already."""
    missing = next(width for width in _WIDTHS if width >= x_THD.shape[2]) - x_THD.shape[2]
    if missing:
        return torch.nn.functional.pad(x_THD, (0, missing)).contiguous()
    aligned = x_THD.data_ptr() % (2 * _ALIGNMENT) == 0 and all(s % _ALIGNMENT == 0 for s in x_THD.stride()[:2])
    return x_THD if aligned and x_THD.stride(2) == 1 else x_THD.clone(memory_format=torch.contiguous_format)


def _rows(x_THD: Tensor) -> AttentionRows:
    return AttentionRows(x_THD.data_ptr(), *x_THD.stride()[:2])


def _params(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, options: AttentionOptions, width: int
) -> tuple[Attention, list[Tensor | None]]:
    """The parameters that both passes share, and the tensors they point to, which must outlive the launch."""
    o = options
    table = None if o.relative_bias is None else o.relative_bias.to(torch.float32)
    given = (cu_q, cu_k, o.prefix_lens, o.alibi_slopes, table, o.buckets, o.rng_key, o.row_ids)
    kept = [None if x is None else x.contiguous() for x in given]
    cu_q_at, cu_k_at, prefix, slopes, table_at, buckets, key, row_ids = map(_cuda._at, kept)
    params = Attention(
        q=_rows(q), k=_rows(k), v=_rows(v), tokens=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1],
        width=q.shape[2], cu_seqlens_q=cu_q_at, cu_seqlens_k=cu_k_at, sequences=cu_q.shape[0] - 1,
        causal=o.causal or prefix is not None, prefix_lens=prefix, window=o.window or 0,
        scale=width**-0.5 if o.scale is None else o.scale, alibi_slopes=slopes, relative_bias=table_at,
        buckets=buckets, reach=0 if o.buckets is None else o.buckets.shape[0] // 2,
        bucket_count=0 if table is None else table.shape[0],
        drop_below=dropout_threshold(o.dropout_p) if key is not None else 0, site=o.site & 0xFFFFFFFF,
        row_ids=row_ids, rng_key=key, key_tokens=k.shape[0], dtype=_cuda.DTYPES[q.dtype],
    )  # fmt: skip
    return params, kept


def forward(
    q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """As :func:`tunecore.ops.reference.attention_reference`; lse_HT is float32."""
    tokens, heads, width = q_THD.shape
    q, k, v = map(_padded, (q_THD, k_SKD, v_SKD))
    params, kept = _params(q, k, v, cu_seqlens_q, cu_seqlens_k, options, width)
    out = q.new_empty((tokens, heads, q.shape[2]))
    lse = q.new_empty((heads, tokens), dtype=torch.float32)
    params.out, params.lse = out.data_ptr(), lse.data_ptr()
    _cuda._call("attention_forward", params, q)
    del kept
    return out[:, :, :width].contiguous(), lse


def backward(
    dout_THD: Tensor, q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, out_THD: Tensor, lse_HT: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, options: AttentionOptions, want_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """As :func:`tunecore.ops.reference.attention_backward_reference`, with dbias only where it is wanted."""
    width, table = q_THD.shape[2], options.relative_bias
    dout, q, k, v, out = map(_padded, (dout_THD, q_THD, k_SKD, v_SKD, out_THD.contiguous()))
    params, kept = _params(q, k, v, cu_seqlens_q, cu_seqlens_k, options, width)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    lse, delta = lse_HT.contiguous(), torch.empty_like(lse_HT, memory_format=torch.contiguous_format)
    params.out, params.lse, params.delta = out.data_ptr(), lse.data_ptr(), delta.data_ptr()
    params.dout, params.dq, params.dk, params.dv = _rows(dout), dq.data_ptr(), dk.data_ptr(), dv.data_ptr()
    dbias = lse.new_zeros(table.shape) if table is not None and want_dbias else None
    parts = None
    if dbias is not None and dbias.numel():
        parts = lse.new_empty(_bias_parts(params))
        params.dbias, params.bias_parts = dbias.data_ptr(), parts.data_ptr()
    _cuda._call("attention_backward", params, q)
    del kept, parts
    dq, dk, dv = (x[:, :, :width].contiguous() for x in (dq, dk, dv))
    return dq, dk, dv, dbias


def _bias_parts(params: Attention) -> int:
    library: Any = _cuda._library
    return int(library.tunecore_cuda_attention_bias_parts(ctypes.c_void_p(ctypes.addressof(params))))
