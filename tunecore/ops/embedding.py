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


def embedding(ids_T: Tensor, weight_VE: Tensor, *, padding_idx: int | None = None, sparse: bool = False) -> Tensor:
    """Rows of a table.

    Args:
        ids_T: int64, any shape, each in [0, V).
        weight_VE: [V, E], any floating dtype; float32 and bfloat16 on the CPU, and float16 too on a GPU, have the
            compiled backward pass, whose gradient is float32 until autograd rounds it to the parameter's
            ``grad_dtype``.
        padding_idx: an id whose row gets no gradient.
        sparse: let the gradient be a sparse tensor of the rows that were looked up, each once, ascending, where the
            compiled backward pass of the CPU serves and T is below V. A dense one is a table of zeros to fill, add
            and read for the few rows of a batch.

    Returns: [*T, E] of the dtype of ``weight``.

    Raises:
        IndexError: an id is outside the table (on a GPU it is torch's assertion on the device).
    """
    if not (_native.serves(weight_VE) or _cuda.serves(weight_VE)) or ids_T.dtype != torch.int64:
        return torch.nn.functional.embedding(ids_T, weight_VE, padding_idx)
    sparse = sparse and ids_T.numel() < weight_VE.shape[0] and _native.serves(weight_VE)
    return _forward_op(ids_T, weight_VE, -1 if padding_idx is None else padding_idx % weight_VE.shape[0], sparse)


def sum_rows(gradient_VE: Tensor) -> Tensor:
    """The same sparse gradient with every row once, ascending; rows that came more than once are summed in their order.

    Accumulating sparse gradients only appends them.

    Args:
        gradient_VE: sparse over its first axis, with float32 values; of other kinds torch makes the sum.
    """
    if gradient_VE.is_coalesced():
        return gradient_VE
    values_UE, rows_U = gradient_VE._values(), gradient_VE._indices()
    ours = gradient_VE.sparse_dim() == 1 and values_UE.ndim == 2 and values_UE.dtype == torch.float32
    if not ours or not _native.serves(values_UE):
        return gradient_VE.coalesce()
    if bool((rows_U[0, 1:] > rows_U[0, :-1]).all()):
        return _of_rows(rows_U[0], values_UE, gradient_VE.shape)
    return _rows_of(values_UE, rows_U[0], gradient_VE.shape, -1)


def _rows_of(dout_TE: Tensor, ids_T: Tensor, shape: torch.Size, padding: int) -> Tensor:
    """Sum ``dout`` [*T, E] into the rows that ``ids`` [*T] names."""
    rows_U, places_T = torch.unique(ids_T, return_inverse=True)
    padded = (rows_U == padding).nonzero()
    values_UE = _backward_op(dout_TE, places_T, rows_U.shape[0], int(padded) if padded.numel() else -1)
    return _of_rows(rows_U, values_UE, shape)


def _of_rows(rows_U: Tensor, values_UE: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(rows_U[None], values_UE, shape, check_invariants=False, is_coalesced=True)


@kernel_op("tunecore::embedding")
def _forward_op(ids_T: Tensor, weight_VE: Tensor, padding: int, sparse: bool) -> Tensor:
    return torch.nn.functional.embedding(ids_T, weight_VE)


@_forward_op.register_fake
def _forward_fake(ids_T: Tensor, weight_VE: Tensor, padding: int, sparse: bool) -> Tensor:
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
    ids_T, weight_VE, ctx.padding, ctx.sparse = inputs
    ctx.shape = weight_VE.shape
    ctx.save_for_backward(ids_T)


def _backward(ctx: Any, dout_TE: Tensor) -> tuple[None, Tensor, None, None]:
    _native.refuse_double_backward("embedding")
    ids_T = ctx.saved_tensors[0]
    if ctx.sparse:
        gradient_VE = _rows_of(dout_TE, ids_T, ctx.shape, ctx.padding)
    else:
        gradient_VE = _backward_op(dout_TE, ids_T, ctx.shape[0], ctx.padding)
    return None, gradient_VE, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
