"""The cases of bench_attention: one batch, packed for tunecore and padded for scaled_dot_product_attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import LeftOutError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tunecore.ops import DropoutKey, attention

HEADS, WIDTH = 12, 64
BUCKETS, REACH = 32, 128
"""T5's bias: rows of its table; beyond this distance all keys share one."""

Call = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One batch of attention."""

    name: str
    lengths: tuple[int, ...]
    dropout: float = 0.0
    causal: bool = False
    bias: bool = False
    """T5's relative bias, its gradient included."""
    memory: bool = False
    """Whether memory is measured too."""

    @property
    def flops(self) -> int:
        """Of forward and backward: 3.5 times the two forward products, half of them where it is causal."""
        pairs = sum(n * n for n in self.lengths)
        return int(3.5 * 4 * pairs * HEADS * WIDTH) // (2 if self.causal else 1)

    def bytes_moved(self, dtype: torch.dtype) -> int:
        """Least bytes: forward reads q, k, v, writes out; backward reads these four and dout, writes dq, dk, dv."""
        return 12 * sum(self.lengths) * HEADS * WIDTH * dtype.itemsize

    def varlen(self, dtype: torch.dtype) -> Call:
        """torch's own attention on the sequences end to end; how it is told to be causal differs by version."""
        from torch.nn.attention.varlen import varlen_attn

        if self.dropout or self.bias:
            raise LeftOutError(f"it has no {'dropout' if self.dropout else 'bias'}")
        q, k, v, dout, cu = self._end_to_end(dtype)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        by_window = "window_size" in inspect.signature(varlen_attn).parameters
        options: dict[str, Any] = {}
        if self.causal:
            options = {"window_size": (-1, 0)} if by_window else {"is_causal": True}
        longest = max(self.lengths)

        def call() -> None:
            torch.autograd.grad(varlen_attn(*inputs, cu, cu, longest, longest, **options), inputs, dout)

        return call

    def packed(self, dtype: torch.dtype) -> Call:
        """tunecore on the sequences end to end."""
        q, k, v, dout, cu = self._end_to_end(dtype)
        rng = DropoutKey(torch.tensor(1), torch.arange(len(self.lengths)), 0)
        options: dict[str, Any] = {"causal": self.causal, "dropout_p": self.dropout, "rng": rng}
        inputs = [x.requires_grad_() for x in (q, k, v)]
        if self.bias:
            inputs.append(_table())
            options |= {"relative_bias_BH": inputs[3], "buckets": _buckets(REACH).to(torch.int32), "scale": 1.0}
        longest = max(self.lengths)

        def call() -> None:
            torch.autograd.grad(attention(*inputs[:3], cu, cu, longest, longest, **options), inputs, dout)

        return call

    def padded(self, dtype: torch.dtype, backend: SDPBackend | None) -> Call:
        """scaled_dot_product_attention on [B, H, L, D], keys of padding masked; its own choice where no backend is
        given. T5's bias is a float mask [1, H, L, L] taken from the table, whose gradient it makes as well.
        """
        q, k, v, dout = (x.transpose(1, 2) for x in self._padded(dtype))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        longest = max(self.lengths)
        options: dict[str, Any] = {"is_causal": self.causal, "dropout_p": self.dropout}
        if min(self.lengths) < longest:
            seen = torch.arange(longest) < torch.tensor(self.lengths)[:, None]
            options["attn_mask"] = seen[:, None, None, :]
        if self.bias:
            inputs.append(_table())
            at = torch.arange(longest)
            places = _buckets(REACH)[(at[None, :] - at[:, None]).clamp(-REACH, REACH) + REACH]
            options["scale"] = 1.0

        def call() -> None:
            if self.bias:
                options["attn_mask"] = inputs[3][places].permute(2, 0, 1)[None].to(dtype)
            if backend is None:
                out = scaled_dot_product_attention(*inputs[:3], **options)
            else:
                with sdpa_kernel(backend):
                    out = scaled_dot_product_attention(*inputs[:3], **options)
            torch.autograd.grad(out, inputs, dout)

        return call

    def _padded(self, dtype: torch.dtype) -> list[Tensor]:
        """q, k, v and the gradient of the output: [B, L, H, D], 0 in padding."""
        torch.manual_seed(0)
        shape = (len(self.lengths), max(self.lengths), HEADS, WIDTH)
        tensors = [torch.randn(shape).to(dtype) for _ in range(4)]
        for b, length in enumerate(self.lengths):
            tensors[3][b, length:] = 0
        return tensors

    def _end_to_end(self, dtype: torch.dtype) -> list[Tensor]:
        """q, k, v and the gradient of the output: [T, H, D]; where each sequence starts."""
        packed = [self._pack(x) for x in self._padded(dtype)]
        return [*packed, torch.tensor(np.cumsum([0, *self.lengths]), dtype=torch.int32)]

    def _pack(self, x: Tensor) -> Tensor:
        return torch.cat([x[b, :length] for b, length in enumerate(self.lengths)])


def _table() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(BUCKETS, HEADS).requires_grad_()


def _buckets(reach: int) -> Tensor:
    """T5's bucket of each distance from -reach to reach."""
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-reach, reach + 1)
    return T5Attention._relative_position_bucket(
        distance, bidirectional=True, num_buckets=BUCKETS, max_distance=REACH
    )


def cases(times: int = 1) -> list[Case]:
    """Even lengths with and without dropout, causal, ragged, T5; ``times`` as many sequences."""
    even = [(64 * times, 32), (16 * times, 128), (4 * times, 512), (times, 2048)]
    ragged = tuple(int(n) for n in np.random.default_rng(0).integers(16, 513, 16 * times))
    return [
        *(Case(f"{b} x {n}{', dropout 0.1' if p else ''}", (n,) * b, p) for b, n in even for p in (0.0, 0.1)),
        *(Case(f"{b} x {n}, causal", (n,) * b, causal=True) for b, n in even[2:]),
        Case(f"{len(ragged)} of 16 to 512", ragged, memory=True),
        *(Case(f"{b} x {n}, T5 bias", (n,) * b, bias=True, memory=True) for b, n in even[2:]),
    ]


def quick_cases() -> list[Case]:
    """One small case of each kind."""
    return [
        Case("2 x 32, dropout 0.1", (32, 32), 0.1),
        Case("2 x 32, causal", (32, 32), causal=True),
        Case("2 of 9 to 32", (9, 32)),
        Case("2 x 32, T5 bias", (32, 32), bias=True, memory=True),
    ]
