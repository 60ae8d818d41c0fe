"""A linear layer and the products under it: float32 on a GEMM of our own, bfloat16 and every other device on torch's.

Shape letters: T rows (all axes but the last), K width of the input, N width of the output.

torch multiplies float32 by MKL, which on processors not of its maker stays on narrower code: ours is faster there in
all three products of a layer (docs/results/cpu.md), and the same bits for any number of threads. bfloat16 is left to
oneDNN, which has the processor's own dot product; into the tile registers of Intel AMX it reads a transposed operand at
half the speed or less, so there the one of a weight's gradient is transposed first; and products that it leaves to
one thread of several run on ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecore.errors import NativeError
from tunecore.ops import _native

_LEAST_ROWS = 32  # with fewer, copying the weight into panels outweighs the product
_LEAST_WORK = 1 << 22  # multiplications below which the call itself does
_LINE = 32  # bfloat16 in a cache line: rows of whole ones, an odd number of them, share no set of a cache
_ONE_THREAD_ROWS, _ONE_THREAD_COLUMNS = range(384, 1536), range(384, 1025)  # of results that oneDNN makes with one


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
    ours = _native.in_tiles(x_TK) or (x_TK.dtype == torch.float32 and _native.serves(x_TK))
    if is_small or not ours:
        return torch.nn.functional.linear(x_TK, weight_NK.t() if transposed else weight_NK, bias_N)
    return _forward_op(x_TK, weight_NK, bias_N, transposed)


def matmul_into(out_MN: Tensor, a_MK: Tensor, b_KN: Tensor, *, bias_N: Tensor | None = None, add: bool = False) -> None:
    """``out = a @ b + bias``, or ``out += a @ b``; on our GEMM where it serves, else on torch's. No autograd."""
    if out_MN.dtype == torch.float32 and out_MN.device.type == "cpu" and (core := _native.load()) is not None:
        operands = (_in_one_piece(x) for x in (a_MK, b_KN))
        tensors = (_native.dl(x) for x in (*operands, out_MN, bias_N))
        core.gemm(*tensors, add, _native.threads())
    elif not add and _left_to_one_thread(out_MN, a_MK, b_KN):
        _native.core().gemm_bf16(*map(_native.dl, (a_MK, b_KN, out_MN, bias_N)), False, _native.threads())
    elif add:
        out_MN.addmm_(a_MK, b_KN)
    elif bias_N is not None:
        torch.addmm(bias_N, a_MK, b_KN, out=out_MN)
    else:
        torch.mm(a_MK, b_KN, out=out_MN)


def _left_to_one_thread(out_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> bool:
    """Whether oneDNN has one thread of several make this product in tiles, by the sizes where it was seen to (two
    threads of a Xeon with AMX, docs/results/cpu.md), and ours takes the operands.
    """
    rows, columns = out_MN.shape
    if rows not in _ONE_THREAD_ROWS or columns not in _ONE_THREAD_COLUMNS:
        return False
    if _native.threads() == 1 or not _native.in_tiles(a_MK) or a_MK.shape[1] % _LINE or a_MK.stride(1) != 1:
        return False
    return 1 in b_KN.stride() and out_MN.stride(1) == 1


def weight_gradient_into(out_MN: Tensor, a_TM: Tensor, b_TN: Tensor, *, add: bool = False) -> None:
    """``out = a.T @ b``, or ``out += a.T @ b``: as :func:`matmul_into`. No autograd."""
    rows, columns = a_TM.shape
    a_MT = a_TM.t()
    if _native.in_tiles(a_TM) and a_TM.stride(1) == 1:
        padded = a_TM.new_empty(columns, (-(-rows // _LINE) | 1) * _LINE)
        _native.core().transpose(_native.dl(a_TM), _native.dl(padded), _native.threads())
        # Of an odd number of rows oneDNN reads one more, times 0: it must not be a NaN. Ours takes all of the zeros.
        ours = not add and b_TN.stride(1) == 1 and _left_to_one_thread(out_MN, padded, b_TN)
        a_MT = padded if ours else padded[:, :rows]
    matmul_into(out_MN, a_MT, b_TN, add=add)


def _in_one_piece(x: Tensor) -> Tensor:
    """A matrix with its rows or its columns in one piece; a view where it is so already."""
    return x if 1 in x.stride() else x.contiguous()


@torch.library.custom_op("tunecore::linear", mutates_args=())
def _forward_op(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, transposed: bool) -> Tensor:
    weight_KN = weight_NK if transposed else weight_NK.t()
    out_TN = x_TK.new_empty((*x_TK.shape[:-1], weight_KN.shape[1]))
    bias = None if bias_N is None else bias_N.contiguous()
    matmul_into(_native.rows(out_TN), _native.rows(x_TK.contiguous()), weight_KN, bias_N=bias)
    return out_TN


@_forward_op.register_fake
def _forward_fake(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, transposed: bool) -> Tensor:
    return x_TK.new_empty((*x_TK.shape[:-1], weight_NK.shape[1 if transposed else 0]))


@torch.library.custom_op("tunecore::linear_backward", mutates_args=())
def _backward_op(
    dout_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, transposed: bool, dx: bool, dweight: bool, dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are wanted, [0] in place of the others; the bias's in float32, whatever the dtype."""
    dout, x = _native.rows(dout_TN.contiguous()), _native.rows(x_TK.contiguous())
    dx_TK = x_TK.new_empty(x_TK.shape if dx else 0)
    dweight_NK = x_TK.new_empty(weight_NK.shape if dweight else 0)
    dbias_N = x_TK.new_zeros(dout.shape[1] if dbias else 0, dtype=torch.float32)
    if dx:
        matmul_into(_native.rows(dx_TK), dout, weight_NK.t() if transposed else weight_NK)
    if dweight:
        weight_gradient_into(dweight_NK, *((x, dout) if transposed else (dout, x)))
    if dbias:
        _native.core().column_sum(_native.dl(dout), _native.dl(dbias_N), _native.threads())
    return dx_TK, dweight_NK, dbias_N


@_backward_op.register_fake
def _backward_fake(
    dout_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, transposed: bool, dx: bool, dweight: bool, dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    new = x_TK.new_empty
    dbias_N = new(dout_TN.shape[-1] if dbias else 0, dtype=torch.float32)
    return new(x_TK.shape if dx else 0), new(weight_NK.shape if dweight else 0), dbias_N


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
