"""gelu(x + bias), the bias of a linear layer added on the way: one pass over memory instead of two or more.

Shape letters: T rows (all axes but the last), F width of the feed-forward layer.

float32 and bfloat16 on the CPU, and float16 too on a GPU, run on compiled kernels, everything else on the reference.
The backward pass makes the sum for the bias in float32 on its way over the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecore.errors import NativeError
from tunecore.ops import _cuda, _native
from tunecore.ops._kernel_op import kernel_op
from tunecore.ops.reference import bias_gelu_reference


def bias_gelu(x_TF: Tensor, bias_F: Tensor | None = None, *, tanh: bool = False) -> Tensor:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv 1606.08415) of ``x + bias``.

    Args:
        x_TF: [..., F], any floating dtype.
        bias_F: [F] of the same dtype, or None.
        tanh: the approximation by tanh (GPT-2's ``gelu_new``) instead of the exact one by erf.

    Returns: a new tensor of the shape and dtype of ``x``. The gradient of the bias is float32 until autograd rounds it
    to the parameter's ``grad_dtype``.

    Raises:
        NativeError: the bias has another dtype, or another width than ``x``.
    """
    if bias_F is not None and (bias_F.dtype != x_TF.dtype or bias_F.shape != x_TF.shape[-1:]):
        raise NativeError(
            f"bias_gelu: argument 'bias_F': wanted {x_TF.dtype} {list(x_TF.shape[-1:])}, "
            f"got {bias_F.dtype} {list(bias_F.shape)}"
        )
    if not (_native.serves(x_TF) or _cuda.serves(x_TF)):
        return bias_gelu_reference(x_TF, bias_F, tanh=tanh)
    return _forward_op(x_TF, bias_F, tanh)


@kernel_op("tunecore::bias_gelu")
def _forward_op(x_TF: Tensor, bias_F: Tensor | None, tanh: bool) -> Tensor:
    x_TF = x_TF.contiguous()
    out_TF = torch.empty_like(x_TF)
    bias = None if bias_F is None else bias_F.contiguous()
    tensors = (_native.rows(x_TF), bias, _native.rows(out_TF))
    if _cuda.serves(x_TF):
        _cuda.bias_gelu_forward(*tensors, tanh)
    else:
        _native.core().bias_gelu_forward(*map(_native.dl, tensors), tanh, _native.threads())
    return out_TF


@_forward_op.register_fake
def _forward_fake(x_TF: Tensor, bias_F: Tensor | None, tanh: bool) -> Tensor:
    return x_TF.new_empty(x_TF.shape)


@kernel_op("tunecore::bias_gelu_backward")
def _backward_op(
    dout_TF: Tensor, x_TF: Tensor, bias_F: Tensor | None, tanh: bool, want_dbias: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dbias float32 [F], or [0] where it is not wanted."""
    dout_TF, x_TF = dout_TF.contiguous(), x_TF.contiguous()
    dx_TF = torch.empty_like(x_TF)
    dbias_F = x_TF.new_empty(x_TF.shape[-1] if want_dbias else 0, dtype=torch.float32)
    bias = None if bias_F is None else bias_F.contiguous()
    inputs = (_native.rows(dout_TF), _native.rows(x_TF), bias, _native.rows(dx_TF), dbias_F if want_dbias else None)
    if _cuda.serves(x_TF):
        _cuda.bias_gelu_backward(*inputs, tanh)
    else:
        _native.core().bias_gelu_backward(*map(_native.dl, inputs), tanh, _native.threads())
    return dx_TF, dbias_F


@_backward_op.register_fake
def _backward_fake(
    dout_TF: Tensor, x_TF: Tensor, bias_F: Tensor | None, tanh: bool, want_dbias: bool
) -> tuple[Tensor, Tensor]:
    width = x_TF.shape[-1] if want_dbias else 0
    return x_TF.new_empty(x_TF.shape), x_TF.new_empty(width, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_TF, bias_F, ctx.tanh = inputs
    ctx.save_for_backward(x_TF, bias_F)


def _backward(ctx: Any, dout_TF: Tensor) -> tuple[Tensor, Tensor | None, None]:
    _native.refuse_double_backward("bias_gelu")
    x_TF, bias_F = ctx.saved_tensors
    want_dbias = bias_F is not None and ctx.needs_input_grad[1]
    dx_TF, dbias_F = _backward_op(dout_TF, x_TF, bias_F, ctx.tanh, want_dbias)
    return dx_TF, dbias_F if want_dbias else None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
