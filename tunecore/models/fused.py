"""Modules of transformers that run on our ops: a class swap that leaves parameters, names and state dict unchanged.

Only a module of exactly an expected type is swapped, and its forward asks each time whether its parts still are what
they were: a part that was replaced (by an adapter, say) or hooked, autocast, or a tensor no kernel serves takes the
module's own way. Shape letters: T rows, E hidden width, F feed-forward width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from tunecore.ops import NormDropout, _native, bias_gelu, dropout, embedding, linear, residual_norm

_BERT_LIKE = ("bert", "roberta", "electra")
_OUTPUTS, _INTERMEDIATES = (
    frozenset(
        (f"transformers.models.{name}.modeling_{name}", f"{name.capitalize()}{part}")
        for name in _BERT_LIKE
        for part in parts
    )
    for parts in (("SelfOutput", "Output"), ("Intermediate",))
)
"""(module, class) of what is swapped; by name, so that no model's code is imported for it."""
_RMS_NORMS = frozenset({("transformers.models.t5.modeling_t5", "T5LayerNorm")})
_EMBEDDINGS = frozenset(
    ("transformers.models.bart.modeling_bart", name)
    for name in ("BartScaledWordEmbedding", "BartLearnedPositionalEmbedding")
)
"""Embeddings that look up rows by ``super().forward``."""


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
        draw = self.draw()
        return super().forward(input) if draw is None or not _native.serves(input) else dropout(input, *draw)

    @property
    def drops(self) -> bool:
        """Whether it drops anything now."""
        return self.training and self.p > 0.0

    def draw(self) -> NormDropout | None:
        """What a kernel is to draw; None where nothing is dropped, or only torch's own way does it."""
        key = self.source.key
        return NormDropout(self.p, key, self.site) if self.drops and self.p < 1.0 and key is not None else None


class KernelLinear(nn.Linear):
    """``nn.Linear`` on our product where it is faster than torch's: float32 on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if _fits(input, self.weight):
            return linear(input, self.weight, self.bias)
        return super().forward(input)


class KernelConv1D(Conv1D):
    """GPT-2's linear layer, whose weight lies transposed."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if _fits(x, self.weight):
            return linear(x, self.weight, self.bias, transposed=True)
        return super().forward(x)


class KernelLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis on our kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """The norm of ``input`` [..., E]."""
        if _is_affine(self) and _native.serves(input) and input.dtype == self.weight.dtype:
            return residual_norm(input, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class KernelRMSNorm(nn.Module):
    """T5's norm, without mean and bias, on our kernel."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm of ``hidden_states`` [..., E]."""
        if _native.serves(hidden_states) and hidden_states.dtype == self.weight.dtype:
            return residual_norm(hidden_states, self.weight, eps=self.variance_epsilon, centred=False)
        return super().forward(hidden_states)


class KernelEmbedding(nn.Embedding):
    """``nn.Embedding`` whose gradient is summed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table [*T, E]."""
        if self.max_norm is not None or self.scale_grad_by_freq or self.sparse:
            return super().forward(input)
        return embedding(input, self.weight, padding_idx=self.padding_idx)


class KernelGelu(GELUActivation):
    """The exact GELU on our kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """gelu(input), by erf."""
        return bias_gelu(input) if _native.serves(input) else super().forward(input)


class KernelNewGelu(NewGELUActivation):
    """GPT-2's GELU, approximated by tanh, on our kernel: one pass where transformers makes eight."""

    def forward(self, input: Tensor) -> Tensor:
        """gelu(input), by tanh."""
        return bias_gelu(input, tanh=True) if _native.serves(input) else super().forward(input)


class FusedOutput(nn.Module):
    """The end of a BERT-like sublayer, ``LayerNorm(input + dropout(dense(hidden)))``: product, then one pass."""

    dense: KernelLinear
    LayerNorm: KernelLayerNorm
    dropout: CounterDropout

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[..., F] and [..., E] -> [..., E]."""
        dense, norm, drop = self.dense, self.LayerNorm, self.dropout
        plain = _is_plain(dense, KernelLinear) and _is_plain(norm, KernelLayerNorm) and _is_plain(drop, CounterDropout)
        if not plain or not _is_affine(norm) or not _fits(hidden_states, dense.weight, norm.weight):
            return super().forward(hidden_states, input_tensor)
        draw = drop.draw()
        if drop.drops and draw is None:
            return super().forward(hidden_states, input_tensor)
        return residual_norm(
            linear(hidden_states, dense.weight), norm.weight, norm.bias, eps=norm.eps,
            residual_TE=input_tensor, input_bias_E=dense.bias, dropout=draw,
        )  # fmt: skip


class FusedIntermediate(nn.Module):
    """The start of a BERT-like feed-forward layer, ``gelu(dense(hidden))``: product, then one pass."""

    dense: KernelLinear
    intermediate_act_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., E] -> [..., F]."""
        dense, activation = self.dense, self.intermediate_act_fn
        tanh = _is_plain(activation, KernelNewGelu)
        plain = _is_plain(dense, KernelLinear) and (tanh or _is_plain(activation, KernelGelu))
        if not plain or not _fits(hidden_states, dense.weight):
            return super().forward(hidden_states)
        return bias_gelu(linear(hidden_states, dense.weight), dense.bias, tanh=tanh)


_SIMPLE: dict[type, type] = {
    nn.Linear: KernelLinear,
    Conv1D: KernelConv1D,
    nn.Embedding: KernelEmbedding,
    nn.LayerNorm: KernelLayerNorm,
    GELUActivation: KernelGelu,
    NewGELUActivation: KernelNewGelu,
}


def swap_modules(module: nn.Module) -> DropoutSource:
    """Swap every module below ``module`` that our ops serve; returns the common source of their dropout.

    A dropout module that is called several times in one forward (shared layers) would draw one mask for all calls, so
    a model that has the same module under several names keeps torch's dropout.
    """
    source, site = DropoutSource(), 0
    named = [m for _, m in module.named_modules(remove_duplicate=False)]
    shared = len(named) != len(set(map(id, named)))
    for one in module.modules():
        kind: Any = type(one)
        if kind in (nn.Dropout, CounterDropout) and not shared:
            one.__class__ = CounterDropout
            one.source, one.site = source, site  # type: ignore[assignment]
            site += 1
        elif kind in _SIMPLE and (kind is not GELUActivation or one.act is nn.functional.gelu):
            one.__class__ = _SIMPLE[kind]
        elif (kind.__module__, kind.__name__) in _OUTPUTS:
            one.__class__ = swapped_class(FusedOutput, kind)
        elif (kind.__module__, kind.__name__) in _INTERMEDIATES:
            one.__class__ = swapped_class(FusedIntermediate, kind)
        elif (kind.__module__, kind.__name__) in _RMS_NORMS:
            one.__class__ = swapped_class(KernelRMSNorm, kind)
        elif (kind.__module__, kind.__name__) in _EMBEDDINGS:
            one.__class__ = swapped_class(kind, KernelEmbedding)
    return source


@functools.cache
def swapped_class(first: type, second: type) -> type:
    """A class that is both, the first's forward before the second's."""
    return type(f"{first.__name__}Of{second.__name__}", (first, second), {"__doc__": first.__doc__})


def is_unhooked(module: Any) -> bool:
    """Whether nobody notices when the module is not called."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, name) for name in hooks)


def _is_plain(module: Any, kind: type) -> bool:
    """Exactly of that type, and without hooks."""
    return type(module) is kind and is_unhooked(module)


def _is_affine(norm: nn.LayerNorm) -> bool:
    return norm.weight is not None and norm.weight.ndim == 1


def _fits(hidden: Tensor, *weights: Tensor) -> bool:
    """Whether kernels serve these tensors as they are."""
    if torch.is_autocast_enabled(hidden.device.type) or not _native.serves(hidden):
        return False
    return all(weight.dtype == hidden.dtype for weight in weights)
