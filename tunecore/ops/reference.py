"""The short PyTorch reference of every op: the single copy that fallback, tests and benchmarks share.

Shape letters: T tokens in the batch, S keys, H heads, K kv-heads, D head width, N rows with a target, E hidden
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF


def masked_lm_loss_reference(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross-entropies of ``hidden @ weight.T + bias`` against ``targets``, by plain autograd operations.

    Of every row: ``lse - (1 - s) * logit[target] - s * mean(logits) + z_loss * lse**2`` with s the label smoothing
    (Szegedy et al. 2016, arXiv 1512.00567) and lse the log of the softmax's denominator (z-loss: Chowdhery et al.
    2022, arXiv 2204.02311). Logits are made in the dtype of the inputs, the rest in float32 (float64 for float64).

    Returns:
        The sum (scalar, float32 or float64), the number of rows not ignored (int64) and how many of them have their
        target as the first of the largest logits (int64).
    """
    keep = torch.ones_like(targets_N, dtype=torch.bool) if ignore_index is None else targets_N != ignore_index
    rows_NE, labels_N = hidden_NE[keep], targets_N[keep]
    logits_NV = torch.nn.functional.linear(rows_NE, weight_VE, bias_V)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    lse_N = torch.logsumexp(logits_NV, dim=1)
    target_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    loss_N = lse_N - (1.0 - label_smoothing) * target_N + z_loss * lse_N.square()
    if label_smoothing:
        loss_N = loss_N - label_smoothing * logits_NV.mean(dim=1)
    correct = (logits_NV.argmax(dim=1) == labels_N).sum()
    return loss_N.sum(), keep.sum(), correct


def philox4x32(key: tuple[Tensor | int, Tensor | int], counter: tuple[Tensor | int, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011) of four counter words under two key words: four int64 tensors of 32-bit words.

    Words are int64 in [0, 2**32) and broadcast against one another; the same numbers as csrc/common/philox.h and
    tunecore/data/streams.py.
    """
    k0, k1 = key
    c0, c1, c2, c3 = (torch.as_tensor(word) for word in counter)
    for _ in range(10):
        # The low 64 bits of a product are right in signed arithmetic too; the mask undoes the arithmetic shift.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32 & _MASK32) ^ c1 ^ k0, b & _MASK32, (a >> 32 & _MASK32) ^ c3 ^ k1, a & _MASK32
        k0, k1 = k0 + 0x9E3779B9 & _MASK32, k1 + 0xBB67AE85 & _MASK32
    return c0, c1, c2, c3


def dropout_threshold(p: float) -> int:
    """Attention dropout drops an element whose 16 random bits are below this."""
    return round(p * 65536)


def dropout_reference(x: Tensor, p: float, key: Tensor, site: int) -> Tensor:
    """Dropout of ``x`` by counter.

    Element n, in row-major order, has the key words (low(key) ^ site * 0x9E3779B9, high(key)) and the counter words
    (n // 8 mod 2**32, n // 2**35, 2**32 - 1, 0); of the eight 16-bit lanes, low halves first, lane n % 8 is its own.
    """
    threshold = dropout_threshold(p)
    words = (key & _MASK32) ^ (site * 0x9E3779B9 & _MASK32), key >> 32 & _MASK32
    block = torch.arange(-(-x.numel() // 8), device=x.device)
    drawn = torch.stack(philox4x32(words, (block & _MASK32, block >> 32, torch.tensor(_MASK32), key * 0)), dim=-1)
    lanes = torch.stack((drawn & 0xFFFF, drawn >> 16), dim=-1)
    keep = (lanes.flatten()[: x.numel()] >= threshold).view(x.shape)
    wide = torch.promote_types(x.dtype, torch.float32)
    scaled = x.to(wide) * torch.tensor(65536 / (65536 - threshold), dtype=wide, device=x.device)
    return torch.where(keep, scaled, 0.0).to(x.dtype).contiguous()


def bias_gelu_reference(x_TF: Tensor, bias_F: Tensor | None, *, tanh: bool) -> Tensor:
    """gelu(x + bias), by erf or its approximation by tanh; float32 at least, then rounded."""
    wide = torch.promote_types(x_TF.dtype, torch.float32)
    z_TF = x_TF.to(wide) if bias_F is None else x_TF.to(wide) + bias_F.to(wide)
    return torch.nn.functional.gelu(z_TF, approximate="tanh" if tanh else "none").to(x_TF.dtype)


def residual_norm_reference(
    x_TE: Tensor,
    weight_E: Tensor,
    bias_E: Tensor | None,
    *,
    eps: float,
    residual_TE: Tensor | None = None,
    input_bias_E: Tensor | None = None,
    dropout: tuple[float, Tensor, int] | None = None,
    centred: bool = True,
) -> Tensor:
    """Norm of ``residual + dropout(x + input_bias)``; the sum is rounded to the dtype of ``x``, the rest is wide."""
    wide = torch.promote_types(x_TE.dtype, torch.float32)
    z_TE = x_TE.to(wide) if input_bias_E is None else x_TE.to(wide) + input_bias_E.to(wide)
    if dropout is not None:
        z_TE = dropout_reference(z_TE, *dropout)
    if residual_TE is not None:
        z_TE = z_TE + residual_TE.to(wide)
    z_TE = z_TE.to(x_TE.dtype).to(wide)
    if centred:
        z_TE = z_TE - z_TE.mean(dim=-1, keepdim=True)
    y_TE = z_TE * torch.rsqrt(z_TE.square().mean(dim=-1, keepdim=True) + eps) * weight_E.to(wide)
    return (y_TE if bias_E is None else y_TE + bias_E.to(wide)).to(x_TE.dtype)


def attention_keep(
    key: Tensor, row_id: Tensor, site: int, heads: int, queries: int, keys: int, threshold: int
) -> Tensor:
    """Which elements of one sequence's weights dropout keeps, bool [heads, queries, keys].

    Element (row_id, h, i, j) under the 64-bit ``key`` and ``site`` has the key words (low(key) ^ site * 0x9E3779B9,
    high(key)) and the counter words (j // 8, i, h, row_id mod 2**32); the four words are eight 16-bit lanes, low halves
    first, of which lane j % 8 is the element's. Kept where the lane is at least ``threshold``.
    """
    words = (key & _MASK32) ^ (site * 0x9E3779B9 & _MASK32), key >> 32 & _MASK32
    blocks, i, h = (torch.arange(n, device=key.device) for n in (-(-keys // 8), queries, heads))
    drawn = torch.stack(philox4x32(words, (blocks, i[:, None], h[:, None, None], row_id & _MASK32)), dim=-1)
    lanes = torch.stack((drawn & 0xFFFF, drawn >> 16), dim=-1)
    return lanes.flatten(2)[:, :, :keys] >= threshold


class AttentionOptions(NamedTuple):
    """What attention does beside softmax(q k^T) v; the fields are those of :func:`tunecore.ops.attention`."""

    causal: bool = False
    prefix_lens: Tensor | None = None
    window: int | None = None
    scale: float | None = None
    alibi_slopes: Tensor | None = None
    dropout_p: float = 0.0
    rng_key: Tensor | None = None
    row_ids: Tensor | None = None
    site: int = 0
    relative_bias: Tensor | None = None
    buckets: Tensor | None = None


class _Sequence(NamedTuple):
    """One sequence of a packed batch: its rows, and what of the scores does not depend on q and k."""

    queries: slice
    keys: slice
    visible: Tensor
    bias: Tensor | None
    bucket: Tensor | None
    factor: Tensor | None
    """Dropout as a factor of the weights: 0 or 1 / (1 - p)."""


def _sequences(
    q_THD: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, options: AttentionOptions
) -> Iterator[_Sequence]:
    heads, device = q_THD.shape[1], q_THD.device
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    threshold = dropout_threshold(options.dropout_p)
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(len(ends_q) - 1):
        rows, length = ends_q[b + 1] - ends_q[b], ends_k[b + 1] - ends_k[b]
        j = torch.arange(length, device=device)
        distance = j - (torch.arange(rows, device=device)[:, None] + (length - rows))
        visible = torch.ones_like(distance, dtype=torch.bool)
        if options.causal or options.prefix_lens is not None:
            visible = distance <= 0
            if options.prefix_lens is not None:
                visible = visible | (j < options.prefix_lens[b])
        if options.window is not None:
            visible = visible & (distance.abs() < options.window)
        bias, bucket, factor = None, None, None
        if options.alibi_slopes is not None:
            bias = -options.alibi_slopes.to(wide)[:, None, None] * distance.abs()
        if options.relative_bias is not None and options.buckets is not None:
            reach = options.buckets.shape[0] // 2
            bucket = options.buckets[distance.clamp(-reach, reach) + reach].long()
            from_table = options.relative_bias.to(wide)[bucket].permute(2, 0, 1)
            bias = from_table if bias is None else bias + from_table
        if threshold and options.rng_key is not None and options.row_ids is not None:
            keep = attention_keep(options.rng_key, options.row_ids[b], options.site, heads, rows, length, threshold)
            factor = keep.to(wide) * (65536 / (65536 - threshold))
        at = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        yield _Sequence(*at, visible, bias, bucket, factor)


def _heads_first(x_LKD: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[L, K, D] -> [H, L, D]: kv-head h // (H / K) for head h."""
    return x_LKD.to(dtype).transpose(0, 1).repeat_interleave(heads // x_LKD.shape[1], dim=0)


def _scale(q_THD: Tensor, options: AttentionOptions) -> float:
    return q_THD.shape[2] ** -0.5 if options.scale is None else options.scale


def attention_reference(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: AttentionOptions = AttentionOptions(),  # noqa: B008  (immutable)
) -> tuple[Tensor, Tensor]:
    """Attention of a packed batch by plain autograd operations, one sequence after the other, weights in memory.

    Returns:
        out_THD in the dtype of q, and lse_HT: the log of each row's softmax denominator (float32, or float64 for
        float64). A query that sees no key has output 0 and lse -inf. Arithmetic is float32 (or float64) throughout.
    """
    heads = q_THD.shape[1]
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    outs, lses = [q_THD.new_zeros(q_THD.shape, dtype=wide)[:0]], [q_THD.new_zeros((heads, 0), dtype=wide)]
    for s in _sequences(q_THD, cu_seqlens_q, cu_seqlens_k, options):
        q_HqD, k_HkD, v_HkD = (
            _heads_first(x, heads, wide) for x in (q_THD[s.queries], k_SKD[s.keys], v_SKD[s.keys])
        )
        scores_Hqk = q_HqD @ k_HkD.transpose(1, 2) * _scale(q_THD, options)
        if s.bias is not None:
            scores_Hqk = scores_Hqk + s.bias
        scores_Hqk = scores_Hqk.masked_fill(~s.visible, -torch.inf)
        top = scores_Hqk.detach().amax(2, keepdim=True) if scores_Hqk.shape[2] else scores_Hqk.new_zeros(())
        top = torch.where(top == -torch.inf, 0.0, top)
        weights_Hqk = torch.exp(scores_Hqk - top)
        sum_Hq1 = weights_Hqk.sum(2, keepdim=True)
        lses.append((top + torch.log(sum_Hq1))[:, :, 0])
        weights_Hqk = weights_Hqk / torch.where(sum_Hq1 == 0, 1.0, sum_Hq1)
        if s.factor is not None:
            weights_Hqk = weights_Hqk * s.factor
        outs.append((weights_Hqk @ v_HkD).transpose(0, 1))
    return torch.cat(outs).to(q_THD.dtype), torch.cat(lses, dim=1)


def attention_backward_reference(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: AttentionOptions = AttentionOptions(),  # noqa: B008  (immutable)
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`attention_reference` by the closed form (Dao et al. 2022, arXiv 2205.14135, appendix B).

    Needed where no autograd graph can be made: inside a custom op.

    Returns:
        dq_THD, dk_SKD, dv_SKD in the dtypes of their inputs, and the gradient of ``relative_bias`` (float32, or
        float64 for float64) where there is one.
    """
    heads, scale = q_THD.shape[1], _scale(q_THD, options)
    wide = lse_HT.dtype
    dq, dk, dv = (torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (q_THD, k_SKD, v_SKD))
    table = options.relative_bias
    dtable = None if table is None else torch.zeros_like(table, dtype=wide, memory_format=torch.contiguous_format)
    for s in _sequences(q_THD, cu_seqlens_q, cu_seqlens_k, options):
        tensors = q_THD[s.queries], out_THD[s.queries], dout_THD[s.queries], k_SKD[s.keys], v_SKD[s.keys]
        q_HqD, out_HqD, dout_HqD, k_HkD, v_HkD = (_heads_first(x, heads, wide) for x in tensors)
        scores_Hqk = q_HqD @ k_HkD.transpose(1, 2) * scale
        if s.bias is not None:
            scores_Hqk = scores_Hqk + s.bias
        weights_Hqk = torch.exp(scores_Hqk - lse_HT[:, s.queries, None]).masked_fill(~s.visible, 0.0)
        kept_Hqk, dweights_Hqk = weights_Hqk, dout_HqD @ v_HkD.transpose(1, 2)
        if s.factor is not None:
            kept_Hqk, dweights_Hqk = weights_Hqk * s.factor, dweights_Hqk * s.factor
        dscores_Hqk = weights_Hqk * (dweights_Hqk - (dout_HqD * out_HqD).sum(2, keepdim=True))
        group = (k_SKD.shape[1], heads // k_SKD.shape[1], -1, k_SKD.shape[2])
        dq[s.queries] = (dscores_Hqk @ k_HkD * scale).transpose(0, 1)
        dk[s.keys] = (dscores_Hqk.transpose(1, 2) @ q_HqD * scale).reshape(group).sum(1).transpose(0, 1)
        dv[s.keys] = (kept_Hqk.transpose(1, 2) @ dout_HqD).reshape(group).sum(1).transpose(0, 1)
        if dtable is not None and s.bucket is not None:
            dtable.index_add_(0, s.bucket.flatten(), dscores_Hqk.flatten(1).t())
    return dq.to(q_THD.dtype), dk.to(k_SKD.dtype), dv.to(v_SKD.dtype), dtable
