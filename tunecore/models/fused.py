"""Modules of transformers that run on our ops: a class swap that leaves parameters, names and state dict unchanged.

Only a module of exactly an expected type is swapped, and its forward asks each time whether its parts still are what
they were: a part that was replaced (by an adapter, say) or hooked, autocast, or a tensor no kernel serves takes the
module's own way. On a GPU all do, unless the environment sets TUNECORE_CUDA_LAYERS=1. Shape letters: T rows, E hidden
width, F feed-forward width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from tunecore.models.invocation import invocation, site_of_call
from tunecore.models.packed import with_many_names
from tunecore.ops import NormDropout, _cuda, _native, bias_gelu, dropout, embedding, linear, residual_norm

SWITCH = "TUNECORE_CUDA_LAYERS"
ON_GPU = os.environ.get(SWITCH) == "1"
"""Whether layers on a GPU run on our kernels: not by default, until one has shown that it pays. A plain constant, so
that a graph compiler can look at it.
"""


def _named(parts: tuple[str, ...], prefixes: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """(module, class) of what is swapped; by name, so that no model's code is imported for it."""
    folders = ((f"transformers.models.{name}.modeling_{name}", prefix) for name, prefix in prefixes.items())
    return frozenset((folder, prefix + part) for folder, prefix in folders for part in parts)


_BERT_LIKE = {
    "bert": "Bert",
    "roberta": "Roberta",
    "electra": "Electra",
    "ernie": "Ernie",
    "xlm_roberta": "XLMRoberta",
    "deberta_v2": "DebertaV2",
}
_OUTPUTS = _named(("SelfOutput", "Output"), _BERT_LIKE)
_INTERMEDIATES = _named(("Intermediate",), _BERT_LIKE)
_RMS_NORMS = _named(("RMSNorm",), {"llama": "Llama", "mistral": "Mistral"}) | _named(("LayerNorm",), {"t5": "T5"})
_SHARED_LAYERS = _named(("Transformer",), {"albert": "Albert"})
_EMBEDDINGS = _named(("ScaledWordEmbedding", "LearnedPositionalEmbedding"), {"bart": "Bart"})
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
        return super().forward(input) if draw is None or not _served(input) else dropout(input, *draw)

    @property
    def drops(self) -> bool:
        """Whether it drops anything now."""
        return self.training and self.p > 0.0

    def draw(self) -> NormDropout | None:
        """What a kernel is to draw; None where nothing is dropped, or only torch's own way does it."""
        key = self.source.key
        if not self.drops or self.p >= 1.0 or key is None:
            return None
        return NormDropout(self.p, key, site_of_call(self.site))


class KernelLinear(nn.Linear):
    """``nn.Linear`` on our products where they are faster than torch's: on the CPU."""

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
        if _is_affine(self) and _norm_served(input) and input.dtype == self.weight.dtype:
            return residual_norm(input, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class KernelRMSNorm(nn.Module):
    """RMSNorm, without mean and bias, on our kernel: one pass where transformers makes six."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm of ``hidden_states`` [..., E]."""
        if not _norm_served(hidden_states) or hidden_states.dtype != self.weight.dtype:
            normed: Tensor = super().forward(hidden_states)
            return normed
        return residual_norm(hidden_states, self.weight, eps=self.variance_epsilon, centred=False)


_sparse_gradients = False  # a plain global: see invocation.py


@contextmanager
def sparse_gradients() -> Iterator[None]:
    """Within it, embeddings look up rows with ``sparse`` of :func:`tunecore.ops.embedding`.

    For who knows what to do with such a gradient: torch's own optimizers mostly refuse it. A table whose weight is that
    of another layer too still has a dense one, to which the rows are added.
    """
    global _sparse_gradients
    before, _sparse_gradients = _sparse_gradients, True
    try:
        yield
    finally:
        _sparse_gradients = before


class KernelEmbedding(nn.Embedding):
    """``nn.Embedding`` whose gradient is summed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table [*T, E]."""
        if self.max_norm is not None or self.scale_grad_by_freq or self.sparse or not _served(self.weight):
            return super().forward(input)
        return embedding(input, self.weight, padding_idx=self.padding_idx, sparse=_sparse_gradients)


class KernelGelu(GELUActivation):
    """The exact GELU on our kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """gelu(input), by erf."""
        return bias_gelu(input) if _served(input) else super().forward(input)


class KernelNewGelu(NewGELUActivation):
    """GPT-2's GELU, approximated by tanh, on our kernel: one pass where transformers makes eight."""

    def forward(self, input: Tensor) -> Tensor:
        """gelu(input), by tanh."""
        return bias_gelu(input, tanh=True) if _served(input) else super().forward(input)


class FusedOutput(nn.Module):
    """The end of a BERT-like sublayer, ``LayerNorm(input + dropout(dense(hidden)))``: product, then one pass."""

    dense: KernelLinear
    LayerNorm: KernelLayerNorm
    dropout: CounterDropout

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[..., F] and [..., E] -> [..., E]."""
        dense, norm, drop = self.dense, self.LayerNorm, self.dropout
        plain = _is_plain(dense, KernelLinear) and _is_plain(norm, KernelLayerNorm) and _is_plain(drop, CounterDropout)
        fits = _fits(hidden_states, dense.weight, norm.weight) and _norm_served(input_tensor)
        if not plain or not _is_affine(norm) or not fits:
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


class NumberedLayers(nn.Module):
    """ALBERT's loop over layers that share their weights: each call says its number, and may be recomputed alone."""

    embedding_hidden_mapping_in: nn.Linear
    albert_layer_groups: nn.ModuleList
    gradient_checkpointing = False

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """[..., E'] of the embeddings -> [..., E]."""
        config: Any = self.config
        hidden_states = self.embedding_hidden_mapping_in(hidden_states)
        for number in range(config.num_hidden_layers):
            # Rounded as transformers rounds, or a layer at the edge of a group would take the weights of another.
            group = self.albert_layer_groups[int(number / (config.num_hidden_layers / config.num_hidden_groups))]
            call: Callable[..., Tensor] = functools.partial(self._call, number, group, **kwargs)
            if self.gradient_checkpointing and self.training:
                hidden_states = self._gradient_checkpointing_func(call, hidden_states, attention_mask)  # type: ignore[operator]
            else:
                hidden_states = call(hidden_states, attention_mask)
        return BaseModelOutput(last_hidden_state=hidden_states)

    @staticmethod
    def _call(
        number: int, group: nn.Module, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        with invocation(number):
            called: Tensor = group(hidden_states, attention_mask, **kwargs)
        return called


_SIMPLE: dict[type, type] = {
    nn.Linear: KernelLinear,
    Conv1D: KernelConv1D,
    nn.Embedding: KernelEmbedding,
    nn.LayerNorm: KernelLayerNorm,
    GELUActivation: KernelGelu,
    NewGELUActivation: KernelNewGelu,
}

_BY_NAME: dict[type, frozenset[tuple[str, str]]] = {
    FusedOutput: _OUTPUTS,
    FusedIntermediate: _INTERMEDIATES,
    KernelRMSNorm: _RMS_NORMS,
}


def swap_modules(module: nn.Module) -> DropoutSource:
    """Swap every module below ``module`` that our ops serve; returns the common source of their dropout.

    A dropout module that stands under several names would draw one mask for all its calls and keeps torch's dropout;
    one of layers that are called in a loop is told which call it is (:func:`number_shared_layers`).
    """
    source, site = DropoutSource(), 0
    number_shared_layers(module)
    several = with_many_names(module)
    for one in module.modules():
        kind: Any = type(one)
        if kind in (nn.Dropout, CounterDropout) and id(one) not in several:
            one.__class__ = CounterDropout
            one.source, one.site = source, site  # type: ignore[assignment]
            site += 1
        elif kind in _SIMPLE and (kind is not GELUActivation or one.act is nn.functional.gelu):
            one.__class__ = _SIMPLE[kind]
        else:
            name = kind.__module__, kind.__name__
            for ours, theirs in _BY_NAME.items():
                if name in theirs:
                    one.__class__ = swapped_class(ours, kind)
            if name in _EMBEDDINGS:
                one.__class__ = swapped_class(kind, KernelEmbedding)
    return source


def number_shared_layers(model: nn.Module) -> None:
    """Have the loops over shared layers say which call of a layer is made, so that each draws its own dropout.

    transformers has no gradient checkpointing for such a model; the loop here has.
    """
    for one in model.modules():
        kind: Any = type(one)
        if (kind.__module__, kind.__name__) in _SHARED_LAYERS:
            one.__class__ = swapped_class(NumberedLayers, kind)
    if isinstance(model, PreTrainedModel) and any(isinstance(one, NumberedLayers) for one in model.modules()):
        model.supports_gradient_checkpointing = True


@functools.cache
def swapped_class(first: type, second: type) -> type:
    """A class that is both, the first's forward before the second's."""
    return type(f"{first.__name__}Of{second.__name__}", (first, second), {"__doc__": first.__doc__})


def is_unhooked(module: Any) -> bool:
    """Whether nobody notices when the module is not called."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, name) for name in hooks)


def _served(x: Tensor) -> bool:
    """Whether layers run on our kernels for tensors like ``x``."""
    return _native.serves(x) or (ON_GPU and _cuda.serves(x))


def _norm_served(x: Tensor) -> bool:
    """The same for norms over rows like those of ``x``."""
    return _native.serves(x) or (ON_GPU and _cuda.serves_norm(x))


def _is_plain(module: Any, kind: type) -> bool:
    """Exactly of that type, and without hooks."""
    return type(module) is kind and is_unhooked(module)


def _is_affine(norm: nn.LayerNorm) -> bool:
    return norm.weight is not None and norm.weight.ndim == 1


def _fits(hidden: Tensor, *weights: Tensor) -> bool:
    """Whether kernels serve these tensors as they are."""
    if torch.is_autocast_enabled(hidden.device.type) or not _served(hidden):
        return False
    return all(weight.dtype == hidden.dtype for weight in weights)
