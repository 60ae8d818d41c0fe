"""Encoder-decoder models on packed batches: what their modules need beyond the attention function.

T5 makes a bias [1, H, T, S] of relative positions in its first layer and hands it on to the others. Packed, each layer
gets the table [buckets, H] in its place and the kernel reads it inside. BART counts positions along the row whatever
``position_ids`` says. Packed, it is given them. Both are forward pre-hooks: classes, parameters and state dict stay.

Shape letters: T tokens of one stack, H heads, E hidden width, R the distance from which all are in one bucket.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tunecore.errors import ConfigError
from tunecore.models.packed import BUCKETS

_T5_ATTENTION = ("transformers.models.t5.modeling_t5", "T5Attention")
_BART_STACKS = {
    ("transformers.models.bart.modeling_bart", "BartEncoder"): "position_ids",
    ("transformers.models.bart.modeling_bart", "BartDecoder"): "decoder_position_ids",
}
"""(module, class) -> the argument with its positions; by name, so that no model's code is imported for it."""
_POSITIONS = "_tunecore_positions"
_READY = "_tunecore_packs"


class EncoderDecoder(nn.Module):
    """Both stacks of a model without its head: packed ids to the decoder's hidden states.

    It owns no parameter, and lets the one layout reach both stacks.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """``last_hidden_state`` [1, T, E] of the decoder; padded, with masks, [batch, T, E]."""
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        output: BaseModelOutputWithPastAndCrossAttentions = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            **kwargs,
        )
        return output


def prepare(model: nn.Module) -> None:
    """Hook the modules of T5 and BART below ``model`` that packed batches need; a second call changes nothing."""
    module: Any
    for module in model.modules():
        kind = type(module).__module__, type(module).__name__
        if hasattr(module, _READY):
            continue
        if kind == _T5_ATTENTION:
            setattr(module, BUCKETS, _buckets(module))
            module.register_forward_pre_hook(_give_table, with_kwargs=True)
        elif kind in _BART_STACKS:
            module.register_forward_pre_hook(partial(_keep_positions, _BART_STACKS[kind]), with_kwargs=True)
            module.embed_positions.register_forward_pre_hook(_give_positions, with_kwargs=True)
        else:
            continue
        setattr(module, _READY, True)


def _buckets(attention: Any) -> Tensor:
    """int32 [2R + 1]: the bucket of each distance from -R to R, by the model's own rule."""
    reach = attention.relative_attention_max_distance
    distances = torch.arange(-reach, reach + 1, dtype=torch.int64, device="cpu")
    buckets: Tensor = attention._relative_position_bucket(
        distances,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return buckets.to(torch.int32)


def _give_table(attention: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Packed, the table is the position bias of the first layer, and nothing is that of cross attention."""
    if kwargs.get("packed") is None or kwargs.get("position_bias") is not None:
        return None
    hidden: Tensor = args[0]
    if attention.has_relative_attention_bias:
        # Through the module, not its weight: an adapter around it is not bypassed.
        rows = torch.arange(attention.relative_attention_num_buckets, device=hidden.device)
        bias = attention.relative_attention_bias(rows)
    else:
        bias = hidden.new_empty(0)
    return args, {**kwargs, "position_bias": bias}


def _keep_positions(name: str, stack: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Leave a packed row's positions where the stack's embedding of positions finds them."""
    if kwargs.get("cu_seq_lens_q") is not None:
        raise ConfigError(
            f"{type(stack).__name__}: cu_seq_lens_q cannot tell encoder and decoder apart", hint="Pass packed=."
        )
    positions = None if kwargs.get("packed") is None else kwargs.get(name)
    if kwargs.get("packed") is not None and positions is None:
        raise ConfigError(f"{type(stack).__name__}: a packed batch needs {name}, which restart in each sequence")
    setattr(stack.embed_positions, _POSITIONS, positions)


def _give_positions(embedding: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    positions: Tensor | None = getattr(embedding, _POSITIONS, None)
    return None if positions is None else (args, {**kwargs, "position_ids": positions.squeeze(0)})
