"""Modules of transformers that run on our ops: a class swap that leaves parameters, names and state dict unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunecore.ops import _native, dropout


class DropoutSource:
    """Where the swapped modules of one model take their random bits from; ``key`` is set before each forward.

    It must stay until the backward pass is over: under gradient checkpointing the forward runs once more, and draws
    the same mask again.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None


class CounterDropout(nn.Dropout):
    """``nn.Dropout`` drawn by counter while its source has a key; else, and where there is no kernel, torch's own."""

    source: DropoutSource
    site: int

    def forward(self, input: Tensor) -> Tensor:
        """Dropout of ``input``, of any shape."""
        key = self.source.key
        if not self.training or self.p == 0.0 or key is None or not 0.0 < self.p < 1.0:
            return super().forward(input)
        if input.device.type != "cpu" or input.dtype not in (torch.float32, torch.bfloat16) or _native.load() is None:
            return super().forward(input)
        return dropout(input, self.p, key, self.site)


def swap_dropout(module: nn.Module) -> DropoutSource:
    """Swap every module below ``module`` that is exactly an ``nn.Dropout``; returns their common source.

    A module that is called several times in one forward (shared layers) would draw one mask for all calls, so a model
    that has the same module under several names is left as it is.
    """
    source = DropoutSource()
    modules = [m for _, m in module.named_modules(remove_duplicate=False)]
    if len(modules) != len(set(map(id, modules))):
        return source
    for site, one in enumerate(m for m in modules if type(m) in (nn.Dropout, CounterDropout)):
        one.__class__ = CounterDropout
        one.source, one.site = source, site
    return source
