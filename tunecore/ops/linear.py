"""A linear layer and the products under it: on the CPU float32 and bfloat16 on GEMMs of our own, the rest on torch's.

Shape letters: T rows (all axes but the last), K width of the input, N width of the output.

torch multiplies float32 by MKL, which on processors not of its maker stays on narrower code: ours is faster there in
all three products of a layer (docs/results/cpu.md). bfloat16 is ours where the processor multiplies it, by
``vdpbf16ps`` or in the tile registers of Intel AMX: torch's oneDNN compiles code for every new number of rows, which
packed batches have at each step, for 0.3 to 8 ms, and in tiles leaves some sizes to one thread and reads a transposed
operand at half the speed. Ours give the same bits for any number of threads, and the weight's gradient in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunecore.errors import NativeError
from tunecore.ops import _native
from tunecore.ops._kernel_op import kernel_op

_LEAST_ROWS = 32  # with fewer, copying the weight into panels outweighs the product
_LEAST_WORK = 1 << 22  # multiplications below which the call itself does
_DEEPEST, _DEPTH_AT_ONCE = 1 << 14, 1 << 13  # of bfloat16: all of it is copied, and is to stay in the caches


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, *, transposed: bool = False) -> Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``.

    Args:
        x_TK: [..., K], any floating dtype.
        weight_NK: [N, K] of the same dtype; [K, N] with ``transposed`` (GPT-2's Conv1D keeps it so).
        bias_N: [N] of the same dtype, or None.
        transposed: how the weight lies.

    Returns: [..., N].

    Raises:
        NativeError: a shape or dtype does not fit that of ``x``.
    """
    width, out_width = weight_NK.shape if transposed else (weight_NK.shape[1], weight_NK.shape[0])
    for name, tensor, shape in (("x_TK", x_TK, (*x_TK.shape[:-1], width)), ("bias_N", bias_N, (out_width,))):
        if tensor is not None and (tensor.dtype != weight_NK.dtype or tensor.shape != shape):
            raise NativeError(
                f"linear: argument '{name}': wanted {weight_NK.dtype} {list(shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    rows = x_TK.shape[:-1].numel()
    is_small = rows < _LEAST_ROWS or rows * weight_NK.numel() < _LEAST_WORK
    ours = _native.multiplies_bf16(x_TK) or (x_TK.dtype == torch.float32 and _native.serves(x_TK))
    if is_small or not ours:
        return torch.nn.functional.linear(x_TK, weight_NK.t() if transposed else weight_NK, bias_N)
    return _forward_op(x_TK, weight_NK, bias_N, transposed)


def matmul_into(out_MN: Tensor, a_MK: Tensor, b_KN: Tensor, *, bias_N: Tensor | None = None, add: bool = False) -> None:
    """``out = a @ b + bias``, or ``out += a @ b``; on our GEMM where it serves, else on torch's. No autograd.

    All have one dtype, but of bfloat16 on our GEMM (``_native.multiplies_bf16``) ``out`` may be float32, too.
    """
    gemm = _own_gemm(out_MN, a_MK, add)
    if gemm is not None:
        a_MK, b_KN = _in_one_piece(a_MK), _in_one_piece(b_KN)
        if a_MK.dtype == torch.bfloat16 and a_MK.shape[1] > _DEEPEST:
            _add_parts(gemm, out_MN, a_MK, b_KN, bias_N, add)
        else:
            gemm(*map(_native.dl, (a_MK, b_KN, out_MN, bias_N)), add, _native.threads())
    elif add:
        out_MN.addmm_(a_MK, b_KN)
    elif bias_N is not None:
        torch.addmm(bias_N, a_MK, b_KN, out=out_MN)
    else:
        torch.mm(a_MK, b_KN, out=out_MN)


def _own_gemm(out_MN: Tensor, a_MK: Tensor, add: bool) -> Callable[..., None] | None:
    core = _native.load() if a_MK.device.type == "cpu" else None
    if core is None:
        return None
    if a_MK.dtype == torch.float32:
        return core.gemm
    fits = out_MN.dtype == torch.float32 or not add
    return core.gemm_bf16 if fits and _native.multiplies_bf16(a_MK) else None


def _add_parts(
    gemm: Callable[..., None], out_MN: Tensor, a_MK: Tensor, b_KN: Tensor, bias_N: Tensor | None, add: bool
) -> None:
    """A product whose depth is taken part by part, summed in float32."""
    sums_MN = out_MN if out_MN.dtype == torch.float32 else out_MN.new_empty(out_MN.shape, dtype=torch.float32)
    for k in range(0, a_MK.shape[1], _DEPTH_AT_ONCE):
        end = k + _DEPTH_AT_ONCE
        operands = a_MK[:, k:end], b_KN[k:end], sums_MN, bias_N if k == 0 else None
        gemm(*map(_native.dl, operands), add or k > 0, _native.threads())
    if sums_MN is not out_MN:
        out_MN.copy_(sums_MN)


def _in_one_piece(x: Tensor) -> Tensor:
    """A matrix with its rows or its columns in one piece; a view where it is so already."""
    return x if 1 in x.stride() else x.contiguous()


@kernel_op("tunecore::linear")
def _forward_op(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, transposed: bool) -> Tensor:
    weight_KN = weight_NK if transposed else weight_NK.t()
    out_TN = x_TK.new_empty((*x_TK.shape[:-1], weight_KN.shape[1]))
    bias = None if bias_N is None else bias_N.contiguous()
    matmul_into(_native.rows(out_TN), _native.rows(x_TK.contiguous()), weight_KN, bias_N=bias)
    return out_TN


@_forward_op.register_fake
def _forward_fake(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, transposed: bool) -> Tensor:
    return x_TK.new_empty((*x_TK.shape[:-1], weight_NK.shape[1 if transposed else 0]))


@kernel_op("tunecore::linear_backward")
def _backward_op(
    dout_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, transposed: bool, dx: bool, dweight: bool, dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are wanted, [0] in place of the others; those of weight and bias in float32."""
    dout, x = _native.rows(dout_TN.contiguous()), _native.rows(x_TK.contiguous())
    dx_TK = x_TK.new_empty(x_TK.shape if dx else 0)
    dweight_NK = x_TK.new_empty(weight_NK.shape if dweight else 0, dtype=torch.float32)
    dbias_N = x_TK.new_zeros(dout.shape[1], dtype=torch.float32) if dbias else x_TK.new_empty(0, dtype=torch.float32)
    if dx:
        matmul_into(_native.rows(dx_TK), dout, weight_NK.t() if transposed else weight_NK)
    if dweight:
        matmul_into(dweight_NK, *((x.t(), dout) if transposed else (dout.t(), x)))
    if dbias:
        _native.core().column_sum(_native.dl(dout), _native.dl(dbias_N), _native.threads())
    return dx_TK, dweight_NK, dbias_N


@_backward_op.register_fake
def _backward_fake(
    dout_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, transposed: bool, dx: bool, dweight: bool, dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    new = x_TK.new_empty
    dbias_N = new(dout_TN.shape[-1] if dbias else 0, dtype=torch.float32)
    dweight_NK = new(weight_NK.shape if dweight else 0, dtype=torch.float32)
    return new(x_TK.shape if dx else 0), dweight_NK, dbias_N


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_TK, weight_NK, _, ctx.transposed = inputs
    ctx.save_for_backward(x_TK, weight_NK)


def _backward(ctx: Any, dout_TN: Tensor) -> tuple[Tensor | None, ...]:
    _native.refuse_double_backward("linear")
    x_TK, weight_NK = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    gradients = _backward_op(dout_TN, x_TK, weight_NK, ctx.transposed, *wanted)
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
