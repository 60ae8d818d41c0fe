"""Embedding with a gradient summed in float32: torch's bfloat16 one is summed in bfloat16, 3.5 % off on a row that
every token has (a token type).

Shape letters: T tokens (any shape), V rows of the table, E hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecore.ops import _cuda, _native
from tunecore.ops._kernel_op import kernel_op


def embedding(ids_T: Tensor, weight_VE: Tensor, *, padding_idx: int | None = None) -> Tensor:
    """Rows of a table.

    Args:
        ids_T: int64, any shape, each in [0, V).
        weight_VE: [V, E], any floating dtype; float32 and bfloat16 on the CPU, and float16 too on a GPU, have the
            compiled backward pass, whose gradient is float32 until autograd rounds it to the parameter's
            ``grad_dtype``.
        padding_idx: an id whose row gets no gradient.

    Returns: [*T, E] of the dtype of ``weight``.

    Raises:
        IndexError: an id is outside the table (on a GPU it is torch's assertion on the device).
    """
    if not (_native.serves(weight_VE) or _cuda.serves(weight_VE)) or ids_T.dtype != torch.int64:
        return torch.nn.functional.embedding(ids_T, weight_VE, padding_idx)
    return _forward_op(ids_T, weight_VE, -1 if padding_idx is None else padding_idx % weight_VE.shape[0])


@kernel_op("tunecore::embedding")
def _forward_op(ids_T: Tensor, weight_VE: Tensor, padding: int) -> Tensor:
    return torch.nn.functional.embedding(ids_T, weight_VE)


@_forward_op.register_fake
def _forward_fake(ids_T: Tensor, weight_VE: Tensor, padding: int) -> Tensor:
    return weight_VE.new_empty((*ids_T.shape, weight_VE.shape[1]))


@kernel_op("tunecore::embedding_backward")
def _backward_op(dout_TE: Tensor, ids_T: Tensor, rows: int, padding: int) -> Tensor:
    dweight_VE = dout_TE.new_zeros((rows, dout_TE.shape[-1]), dtype=torch.float32)
    tensors = (_native.rows(dout_TE.contiguous()), ids_T.contiguous().view(-1), dweight_VE)
    if _cuda.serves(dout_TE):
        _cuda.embedding_backward(*tensors, padding)
    else:
        _native.core().embedding_backward(*map(_native.dl, tensors), padding, _native.threads())
    return dweight_VE


@_backward_op.register_fake
def _backward_fake(dout_TE: Tensor, ids_T: Tensor, rows: int, padding: int) -> Tensor:
    return dout_TE.new_empty((rows, dout_TE.shape[-1]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids_T, weight_VE, ctx.padding = inputs
    ctx.rows = weight_VE.shape[0]
    ctx.save_for_backward(ids_T)


def _backward(ctx: Any, dout_TE: Tensor) -> tuple[None, Tensor, None]:
    _native.refuse_double_backward("embedding")
    return None, _backward_op(dout_TE, ctx.saved_tensors[0], ctx.rows, ctx.padding), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
