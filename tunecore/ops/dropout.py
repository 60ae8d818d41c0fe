"""Dropout by counter: the mask is a function of key, site and element, so nothing is stored for the backward pass.

float32 and bfloat16 on the CPU, and float16 too on a GPU, run on compiled kernels, everything else on the reference. On
the CPU that is several times faster than torch's generator, whose draws are made one after another on one thread.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import _cuda, _native
from tunecore.ops._kernel_op import kernel_op
from tunecore.ops.reference import dropout_reference, dropout_threshold


def kernel_words(p: float, key: Tensor, site: int) -> tuple[int, int, int]:
    """Dropout as kernels take it: threshold, key and site as unsigned words."""
    return dropout_threshold(p), int(key) & 0xFFFFFFFFFFFFFFFF, site & 0xFFFFFFFF


def device_words(p: float, key: Tensor | None, site: int) -> tuple[int, Tensor | None, int]:
    """The same for kernels of a GPU, which read the key themselves; None with a threshold of 0 only."""
    return dropout_threshold(p), key, site & 0xFFFFFFFF


def dropout(x: Tensor, p: float, key: Tensor, site: int) -> Tensor:
    """Set elements of ``x`` to 0 with probability ``p`` and multiply the others by 1 / (1 - p).

    Args:
        x: any shape and floating dtype; an element is known by its index in row-major order.
        p: in [0, 1), in steps of 2**-16.
        key: int64 scalar, of the run, step and micro-batch.
        site: which of the dropout modules.

    Returns: a new tensor of the shape and dtype of ``x``, contiguous.

    Raises:
        ConfigError: ``p`` is out of range.
        NativeError: ``key`` is no int64 scalar.
    """
    if not p >= 0.0 or dropout_threshold(p) >= 65536:
        raise ConfigError(f"dropout: p={p} is not in [0, 1)")
    if key.shape != () or key.dtype != torch.int64:
        raise NativeError(f"dropout: argument 'key': wanted an int64 scalar, got {key.dtype} {list(key.shape)}")
    return _dropout_op(x, float(p), key, site)


@kernel_op("tunecore::dropout")
def _dropout_op(x: Tensor, p: float, key: Tensor, site: int) -> Tensor:
    on_gpu = _cuda.serves(x)
    if not on_gpu and not _native.serves(x):
        return dropout_reference(x, p, key, site)
    x = x.contiguous()
    out = torch.empty_like(x)
    if on_gpu:
        _cuda.dropout(x, out, *device_words(p, key, site))
    else:
        flat = _native.dl(x.view(-1)), _native.dl(out.view(-1))
        _native.core().dropout(*flat, *kernel_words(p, key, site), _native.threads())
    return out


@_dropout_op.register_fake
def _dropout_fake(x: Tensor, p: float, key: Tensor, site: int) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, key, ctx.site = inputs
    ctx.save_for_backward(key)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None, None]:
    # Linear in x, with a matrix that is its own transpose.
    return _dropout_op(dout, ctx.p, ctx.saved_tensors[0], ctx.site), None, None, None


_dropout_op.register_autograd(_backward, setup_context=_setup_context)
