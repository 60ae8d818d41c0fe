"""Attention over a packed batch: sequences end to end, no padding, no score kept between forward and backward.

Shape letters: T query tokens in the batch, S key tokens, H heads, K kv-heads, D head width, B sequences (in
``relative_bias_BH``: buckets).

float32 and bfloat16 on the CPU, D up to 256, run on the compiled kernel: tiles with an online softmax (Dao et al. 2022,
arXiv 2205.14135), dropout's bits drawn anew in the backward pass, memory O(T), the same bits for any number of threads.
bfloat16 and float16 on a CUDA device do so where its library is there (forward D up to 256, backward 128): the same
algorithm on tensor cores, the same dropout, the same bits in every run.
Everything else (float64, float16 on the CPU, float32 on other devices, wider heads, an installation without the
compiled core) is served by the PyTorch reference of ``ops/reference.py``, one sequence after another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import _attention_cuda, _attention_native, _native
from tunecore.ops._kernel_op import kernel_op
from tunecore.ops.reference import (
    AttentionOptions,
    attention_backward_reference,
    attention_reference,
    dropout_threshold,
)
from tunecore.ops.sequence_ends import sequence_ends


class DropoutKey(NamedTuple):
    """Where dropout's random bits come from; a weight's bits depend on these, its head and its place alone."""

    key: Tensor
    """int64 scalar: of the run, step and micro-batch."""
    row_ids: Tensor
    """int64 [B]: name of each sequence, so that packing does not matter."""
    site: int
    """Which of the attention modules."""


def attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    prefix_lens: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    rng: DropoutKey | None = None,
    relative_bias_BH: Tensor | None = None,
    buckets: Tensor | None = None,
) -> Tensor:
    """Attention of every query to the keys of its own sequence; gradients by autograd for q, k, v and the bias table.

    The score of query i and key j of a sequence is ``scale * q_i . k_j - alibi_slopes[h] * |d| + relative_bias_BH[
    buckets[clamp(d, -R, R) + R], h]`` with ``d = j - (i + k_len - q_len)``: the last query stands at the last key. A
    query that may see no key has output 0. Arithmetic is float32 (float64 for float64) whatever the dtype.

    Args:
        q_THD: [T, H, D] float32, bfloat16, float16 or float64, any strides.
        k_SKD: [S, K, D] of the same dtype, H a multiple of K: head h meets kv-head ``h // (H / K)``.
        v_SKD: as k.
        cu_seqlens_q: int32 [B + 1], where each sequence's queries start: rising from 0 to T. On the device of q.
        cu_seqlens_k: the same for keys, from 0 to S.
        max_seqlen_q: at least the most queries of a sequence.
        max_seqlen_k: at least the most keys of a sequence.
        causal: keys with ``d > 0`` are not seen.
        prefix_lens: int32 [B]; causal, but the first ``prefix_lens[b]`` keys of sequence b are seen by all its queries
            (0: causal; its length: all keys; between: sequence to sequence; Dong et al. 2019, arXiv 1905.03197).
        window: only keys with ``|d| < window`` are seen, whatever the other masks say.
        scale: factor of the products; None is ``D ** -0.5``.
        alibi_slopes: float32 [H], no gradient (Press et al. 2022, arXiv 2108.12409).
        dropout_p: probability, in steps of 2**-16, that a weight is set to 0; the others grow by 1 / (1 - p).
        rng: source of the random bits; needed where ``dropout_p`` is not 0.
        relative_bias_BH: [buckets, H], any floating dtype: T5's table (Raffel et al. 2020, arXiv 1910.10683).
        buckets: int32 [2R + 1], row of the table for each distance from -R to R; given exactly with the table.

    Returns: out [T, H, D] in the dtype of q. It has a first derivative only.

    Raises:
        ConfigError: ``dropout_p``, ``window`` or ``rng`` out of range or missing.
        NativeError: a tensor whose shape, dtype or device does not fit, or sequences that do not fill T and S.
    """
    q_THD, k_SKD, v_SKD = _autocast(q_THD, k_SKD, v_SKD)
    _check_tensors(q_THD, k_SKD, v_SKD)
    _check_options(q_THD, cu_seqlens_q, cu_seqlens_k, prefix_lens, window, alibi_slopes, relative_bias_BH, buckets)
    _check_dropout(q_THD, cu_seqlens_q, dropout_p, rng)
    key, row_ids, site = rng if rng is not None and dropout_threshold(dropout_p) else (None, None, 0)
    return _forward_op(
        q_THD, k_SKD, v_SKD, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), causal, prefix_lens,
        window, q_THD.shape[2] ** -0.5 if scale is None else float(scale), alibi_slopes, float(dropout_p), key, row_ids,
        site, relative_bias_BH, buckets,
    )[0]  # fmt: skip


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors as ``torch.autocast`` gives them to scaled_dot_product_attention."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) for x in tensors]


def _refuse(name: str, wanted: str, got: Tensor) -> None:
    raise NativeError(
        f"attention: argument '{name}': wanted {wanted}, got {got.dtype} {list(got.shape)} on {got.device}"
    )


def _check_tensors(q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
    if q_THD.dim() != 3 or not q_THD.is_floating_point() or q_THD.shape[1] < 1 or q_THD.shape[2] < 1:
        _refuse("q", "floating point [T, H, D]", q_THD)
    heads, width = q_THD.shape[1:]
    like = f"{q_THD.dtype} on {q_THD.device} as q has"
    fits = k_SKD.dim() == 3 and k_SKD.shape[2] == width and k_SKD.shape[1] >= 1 and heads % k_SKD.shape[1] == 0
    if not fits or k_SKD.dtype != q_THD.dtype or k_SKD.device != q_THD.device:
        _refuse("k", f"[S, K, {width}] with K a divisor of {heads}, {like}", k_SKD)
    if v_SKD.shape != k_SKD.shape or v_SKD.dtype != q_THD.dtype or v_SKD.device != q_THD.device:
        _refuse("v", f"{list(k_SKD.shape)} as k has, {like}", v_SKD)


def _check_options(
    q_THD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    prefix_lens: Tensor | None,
    window: int | None,
    alibi_slopes: Tensor | None,
    relative_bias_BH: Tensor | None,
    buckets: Tensor | None,
) -> None:
    heads, device = q_THD.shape[1], q_THD.device
    if cu_seqlens_q.dim() != 1 or cu_seqlens_q.shape[0] < 1:
        _refuse("cu_seqlens_q", f"torch.int32 [B + 1] on {device}", cu_seqlens_q)
    sequences = cu_seqlens_q.shape[0] - 1
    if window is not None and window < 1:
        raise ConfigError(f"attention: window={window} lets no query see any key; it must be at least 1")
    table = relative_bias_BH
    if (table is None) != (buckets is None):
        raise NativeError("attention: relative_bias_BH and buckets belong together; give both or neither")
    if table is not None and (table.dim() != 2 or table.shape[1] != heads or not table.is_floating_point()):
        _refuse("relative_bias_BH", f"floating point [buckets, {heads}]", table)
    if table is not None and table.device != device:
        _refuse("relative_bias_BH", f"a tensor on {device}", table)
    if buckets is not None and (buckets.dim() != 1 or buckets.shape[0] % 2 != 1):
        _refuse("buckets", "torch.int32 [2R + 1]", buckets)
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        raise NativeError("attention: argument 'alibi_slopes' requires grad, but has no gradient", hint="Detach it.")
    wanted = (
        ("cu_seqlens_q", cu_seqlens_q, torch.int32, (sequences + 1,)),
        ("cu_seqlens_k", cu_seqlens_k, torch.int32, (sequences + 1,)),
        ("prefix_lens", prefix_lens, torch.int32, (sequences,)),
        ("alibi_slopes", alibi_slopes, torch.float32, (heads,)),
        ("buckets", buckets, torch.int32, None if buckets is None else buckets.shape),
    )
    for name, x, dtype, shape in wanted:
        if x is not None and (x.shape != shape or x.dtype != dtype or x.device != device):
            _refuse(name, f"{dtype} {list(shape or ())} on {device}", x)


def _check_dropout(q_THD: Tensor, cu_seqlens_q: Tensor, dropout_p: float, rng: DropoutKey | None) -> None:
    if not dropout_p >= 0.0 or dropout_threshold(dropout_p) >= 65536:
        raise ConfigError(f"attention: dropout_p={dropout_p} is not in [0, 1)")
    if rng is None:
        if dropout_p > 0.0:
            raise ConfigError(
                f"attention: dropout_p={dropout_p} needs random bits, but rng is None",
                hint="Pass rng=DropoutKey(key, row_ids, site), or dropout_p=0.0 in evaluation.",
            )
        return
    sequences = cu_seqlens_q.shape[0] - 1
    for name, x, shape in (("rng.key", rng.key, ()), ("rng.row_ids", rng.row_ids, (sequences,))):
        if x.shape != shape or x.dtype != torch.int64 or x.device != q_THD.device:
            _refuse(name, f"torch.int64 {list(shape)} on {q_THD.device}", x)


def _check_lengths(cu_seqlens: Tensor, tokens: int, longest: int, side: str) -> None:
    """Refuse sequences that do not rise from 0 to the number of tokens."""
    found = sequence_ends(cu_seqlens)
    if not found.rising or found.tokens != tokens:
        ends = cu_seqlens.tolist()
        raise NativeError(
            f"attention: argument 'cu_seqlens_{side}': wanted numbers rising from 0 to the {tokens} tokens of "
            f"{'q' if side == 'q' else 'k'}, got {ends if len(ends) <= 16 else [*ends[:8], '...', *ends[-7:]]}"
        )
    if found.longest > longest:
        raise NativeError(
            f"attention: argument 'max_seqlen_{side}': {longest} is below the longest sequence, {found.longest}"
        )


@kernel_op("tunecore::attention")
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    prefix_lens: Tensor | None,
    window: int | None,
    scale: float,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    rng_key: Tensor | None,
    row_ids: Tensor | None,
    site: int,
    relative_bias: Tensor | None,
    buckets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out [T, H, D], lse [H, T]); lse, the log of each row's softmax denominator, is float32 at least."""
    _check_lengths(cu_seqlens_q, q.shape[0], max_seqlen_q, "q")
    _check_lengths(cu_seqlens_k, k.shape[0], max_seqlen_k, "k")
    options = AttentionOptions(
        causal, prefix_lens, window, scale, alibi_slopes, dropout_p, rng_key, row_ids, site, relative_bias, buckets
    )
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        inputs = q, k, v, cu_seqlens_q, cu_seqlens_k, options
        if _attention_cuda.serves(q):
            return _attention_cuda.forward(*inputs)
        core = _attention_native.kernels_for(q)
        return attention_reference(*inputs) if core is None else _attention_native.forward(core, *inputs)


@_forward_op.register_fake
def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide)


@kernel_op("tunecore::attention_backward")
def _backward_op(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    prefix_lens: Tensor | None,
    window: int | None,
    scale: float,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    rng_key: Tensor | None,
    row_ids: Tensor | None,
    site: int,
    relative_bias: Tensor | None,
    buckets: Tensor | None,
    want_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, gradient of the bias table in float32 at least; no elements where it is not wanted)."""
    options = AttentionOptions(
        causal, prefix_lens, window, scale, alibi_slopes, dropout_p, rng_key, row_ids, site, relative_bias, buckets
    )
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        core = _attention_native.kernels_for(q)
        inputs = dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, options
        if _attention_cuda.serves_backward(q, options, want_dbias):
            dq, dk, dv, dbias = _attention_cuda.backward(*inputs, want_dbias)
        elif core is not None:
            dq, dk, dv, dbias = _attention_native.backward(core, *inputs, want_dbias)
        else:
            dq, dk, dv, dbias = attention_backward_reference(*inputs)
        return dq, dk, dv, dbias if dbias is not None and want_dbias else lse.new_empty(0)


@_backward_op.register_fake
def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    relative_bias, want_dbias = rest[11], rest[13]
    shape = relative_bias.shape if want_dbias and relative_bias is not None else (0,)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), lse.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_k, _, _, causal, prefix_lens, window, scale, slopes, p, key, rows, site, table, buckets = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k, prefix_lens, slopes, key, rows, table, buckets)
    ctx.plain = causal, window, scale, p, site


def _backward(ctx: Any, dout: Tensor | None, _dlse: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 18
    _native.refuse_double_backward("attention")
    q, k, v, out, lse, cu_q, cu_k, prefix_lens, slopes, key, row_ids, table, buckets = ctx.saved_tensors
    causal, window, scale, p, site = ctx.plain
    dq, dk, dv, dtable = _backward_op(
        dout, q, k, v, out, lse, cu_q, cu_k, causal, prefix_lens, window, scale, slopes, p, key, row_ids, site, table,
        buckets, ctx.needs_input_grad[16],
    )  # fmt: skip
    needed = ctx.needs_input_grad
    dq, dk, dv = (g if wanted else None for g, wanted in zip((dq, dk, dv), needed, strict=False))
    return dq, dk, dv, *(None,) * 13, dtable if needed[16] else None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
