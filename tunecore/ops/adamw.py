"""One step of AdamW over many tensors, in one pass over memory each, on the CPU or a GPU; without autograd."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tunecore.ops import _cuda, _native


class AdamWTensor(NamedTuple):
    """One tensor and what its step needs; all float32 and contiguous, changed in place."""

    weight: Tensor
    gradient: Tensor
    """Of the whole weight, or of ``rows`` only: [U, E]."""
    mean: Tensor
    """Running mean of the gradient."""
    square: Tensor
    """Running mean of its square."""
    rounded: Tensor | None
    """bfloat16: takes the new weight; None where the weight is its own master."""
    keep: float
    """1 - learning rate * weight decay."""
    step_size: float
    """learning rate / (1 - beta1**t), t the number of this step from 1."""
    root: float
    """1 / sqrt(1 - beta2**t)."""
    rows: Tensor | None = None
    """int64 [U], distinct and ascending: the rows of a weight [V, E] that have a gradient; that of the others is 0. On
    the CPU only."""


def adamw_step(tensors: Iterable[AdamWTensor], *, beta1: float, beta2: float, eps: float, scale: float) -> None:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on gradients times ``scale``.

    Raises:
        NativeError: a tensor has another dtype, size or layout than :class:`AdamWTensor` says.
    """
    by_device: dict[torch.device, list[AdamWTensor]] = {}
    for entry in tensors:
        by_device.setdefault(entry.weight.device, []).append(entry)
    for listed in by_device.values():
        if _cuda.serves(listed[0].weight):
            _cuda.adamw(listed, beta1, beta2, eps, scale, listed[0].weight)
            continue
        arguments = [(*map(_native.dl, entry[:5]), *entry[5:8], _native.dl(entry.rows)) for entry in listed]
        _native.core().adamw(arguments, beta1, beta2, eps, scale, _native.threads())
