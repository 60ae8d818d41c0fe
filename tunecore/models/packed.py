"""Packed batches through transformers' models: importing this module registers ``attn_implementation="tunecore"``.

A packed batch is one row [1, T] of B sequences end to end. The layout reaches every attention module as the kwarg
``packed`` (:class:`tunecore.types.PackedLayout`) or under transformers' own names ``cu_seq_lens_q``, ``cu_seq_lens_k``,
``max_length_q``, ``max_length_k``. Without either, attention and mask are those of transformers' ``sdpa``.

Shape letters: T tokens in the batch, S keys, H heads, K kv-heads, D head width, B sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, find_packed_sequence_indices, sdpa_mask

from tunecore.errors import ConfigError
from tunecore.models.invocation import site_of_call
from tunecore.ops import DropoutKey, attention
from tunecore.types import PackedLayout

ATTENTION = "tunecore"
"""The name of the attention implementation in transformers."""

SITE = "_tunecore_site"
"""Attribute of an attention module: its static dropout site."""

MANY_NAMES = -1
"""The site of a module that a model holds under several names: which of them is called cannot be known."""

BUCKETS = "_tunecore_buckets"
"""Attribute of an attention module with relative positions: int32 [2R + 1], the bucket of each distance -R to R."""

_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "output_attentions", "cache")
_PADDING_WARNING = "warn_if_padding_and_no_attention_mask"
_FLASH_NAMES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class _State:
    """What :func:`prompt_seen_whole` sets. A plain attribute: compiled graphs can read it."""

    prompt_seen_whole = False


_state = _State()


class _Spans(NamedTuple):
    """What one attention call needs of a layout: sequences of queries and keys, and the source of dropout."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    rng: DropoutKey | None
    prefix_lens: Tensor | None = None


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function "tunecore" of transformers' AttentionInterface.

    Args:
        module: the calling attention module; its ``is_causal`` and ``is_decoder`` give the role.
        query: [1, H, T, D] packed (a transposed view, taken as it is), else [batch, H, T, D].
        key, value: [1, K, S, D] or [batch, K, S, D].
        attention_mask: None with a packed layout.
        dropout: probability; transformers passes 0 outside training.
        scaling: factor on the scores; None is D ** -0.5.
        is_causal: overrides ``module.is_causal``.
        packed: the layout; None looks for transformers' names, and without those calls ``sdpa``.
        kwargs: what transformers hands every attention function; ``sliding_window`` w means |i - j| < w. Packed,
            ``position_bias`` is the table [buckets, H] of T5 (or empty: no bias), never [1, H, T, S].

    Returns:
        Output [1, T, H, D] (or sdpa's [batch, T, H, D]), and None in place of the weights.

    Raises:
        ConfigError: a packed batch meets an argument that packed attention cannot honour, or an incomplete layout.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else bool(is_causal)
    if packed is None and all(kwargs.get(name) is None for name in _FLASH_NAMES):
        if attention_mask is None:
            attention_mask = _skipped_mask(query, key, causal, kwargs)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    _check_supported(module, query, attention_mask, kwargs)
    if packed is None:
        spans = _spans_of_names(query, kwargs, dropout)
    else:
        spans = _spans_of_layout(module, packed, causal, dropout)
    q_THD, k_SKD, v_SKD = (_rows(x) for x in (query, key, value))
    out_THD = attention(
        q_THD, k_SKD, v_SKD,
        spans.cu_seqlens_q,
        spans.cu_seqlens_k,
        spans.max_seqlen_q,
        spans.max_seqlen_k,
        causal=causal,
        prefix_lens=spans.prefix_lens,
        window=kwargs.get("sliding_window"),
        scale=scaling,
        dropout_p=0.0 if spans.rng is None else dropout,
        rng=spans.rng,
        **_relative_bias(module, kwargs.get("position_bias")),
    )  # fmt: skip
    return out_THD.unsqueeze(0), None


def mask_function(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """The mask function "tunecore": ``sdpa_mask``, but no mask for a single row without padding.

    There the mask could be that of a packed batch, which would be [T, T]; what it would have held for a row that is
    not packed, :func:`attention_forward` makes up for. Masks with functions of their own (``use_vmap``) are kept.
    """
    if q_length > 1 and _state.prompt_seen_whole:
        device = kwargs.get("device", "cpu")
        keys_BS = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
        if attention_mask is not None:
            keys_BS = attention_mask[:, :kv_length].bool()
        return keys_BS[:, None, None, :].expand(-1, 1, q_length, -1)
    single = batch_size == 1 and attention_mask is None and not kwargs.get("use_vmap", False)
    if single and _is_same(q_length, kv_length):
        return None
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs
    )
    return mask


@contextmanager
def prompt_seen_whole(active: bool = True) -> Iterator[None]:
    """Where ``active``, several tokens that a causal model reads at once (a prompt, before it generates) see each
    other; what is read one by one afterwards sees what stands before it. That is a packed batch's ``prefix_lens``.
    """
    before, _state.prompt_seen_whole = _state.prompt_seen_whole, active
    try:
        yield
    finally:
        _state.prompt_seen_whole = before


def assign_sites(model: nn.Module) -> int:
    """Give every attention module its dropout site: 0, 1, ... in module order. Returns how many there are.

    A site is a property of the module, not a call counter, so a layer recomputed under gradient checkpointing draws
    the mask it drew before, and layers differ; calls of one layer differ by :mod:`tunecore.models.invocation`.
    """
    modules = [module for module in model.modules() if hasattr(module, "is_causal")]
    several = with_many_names(model)
    for site, module in enumerate(modules):
        setattr(module, SITE, MANY_NAMES if id(module) in several else site)
    return len(modules)


def expect_no_mask(model: nn.Module) -> None:
    """Keep transformers from warning that a packed row has no attention mask: the filler at its end is padding to
    nobody. Rows of a real batch are warned of as before.
    """
    for module in model.modules():
        warn = getattr(module, _PADDING_WARNING, None)
        if warn is not None:
            setattr(module, _PADDING_WARNING, partial(_warn_of_several_rows, warn))


def _warn_of_several_rows(warn: Callable[..., None], input_ids: Tensor | None, attention_mask: Tensor | None) -> None:
    if input_ids is None or input_ids.shape[0] > 1:
        warn(input_ids, attention_mask)


def with_many_names(model: nn.Module) -> set[int]:
    """Ids of the modules that ``model`` holds under several names: each is called once a name, with nothing to tell
    the calls apart.
    """
    counts = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return {one for one, count in counts.items() if count > 1}


def _is_same(q_length: int | Tensor, kv_length: int | Tensor) -> bool:
    known = isinstance(q_length, int | torch.SymInt) and isinstance(kv_length, int | torch.SymInt)
    return known and bool(q_length == kv_length)


def _rows(heads_1HTD: Tensor) -> Tensor:
    """[1, H, T, D] -> [T, H, D], a view."""
    return heads_1HTD.squeeze(0).transpose(0, 1)


def _spans_of_layout(module: nn.Module, packed: PackedLayout, causal: bool, dropout: float) -> _Spans:
    """Choose the role of ``module``, and with it the sequences of queries and of keys."""
    encoder: tuple[Tensor | None, int] = packed.cu_seqlens, packed.max_seqlen
    decoder = packed.decoder_cu_seqlens, packed.decoder_max_seqlen
    queries = keys = encoder
    if packed.queries is not None:
        queries = packed.queries.cu_seqlens, packed.queries.max_seqlen
    if packed.decoder_cu_seqlens is not None and causal:
        queries = keys = decoder
    elif not causal and _in_decoder(module):
        queries = decoder
    if queries[0] is None or keys[0] is None:
        raise ConfigError(
            f"{type(module).__name__} attends from a decoder to an encoder, but the layout has no decoder sequences",
            hint="Fill decoder_cu_seqlens and decoder_max_seqlen of the PackedLayout.",
        )
    rng = None
    if dropout > 0.0 and packed.rng_key is not None:
        site = getattr(module, SITE, None)
        if site is None or packed.row_ids is None:
            raise ConfigError(
                f"{type(module).__name__} cannot draw its dropout: "
                + ("its dropout site is not set" if site is None else "the layout has an rng_key but no row_ids"),
                hint="Call tunecore.models.packed.assign_sites(model) once, and give the layout row_ids.",
            )
        key = _key_of_torch(packed.rng_key.device) if site == MANY_NAMES else packed.rng_key
        rng = DropoutKey(key, packed.row_ids, 0 if site == MANY_NAMES else site_of_call(site))
    if packed.prefix_lens is not None and packed.decoder_cu_seqlens is not None:
        raise ConfigError(f"{type(module).__name__}: prefix_lens are for models of one stack; the layout has a decoder")
    return _Spans(queries[0], keys[0], queries[1], keys[1], rng, packed.prefix_lens)


def _in_decoder(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return any(
        getattr(owner, name, False)
        for owner, name in ((module, "is_decoder"), (module, "is_cross_attention"), (config, "is_decoder"))
    )


def _relative_bias(module: nn.Module, position_bias: Tensor | None) -> dict[str, Any]:
    """The table of relative positions [buckets, H] and the bucket of each distance; nothing without a bias."""
    if position_bias is None or position_bias.numel() == 0:
        return {}
    buckets: Tensor | None = getattr(module, BUCKETS, None)
    if position_bias.dim() != 2 or buckets is None:
        raise ConfigError(
            f"{type(module).__name__}: packed attention reads a table [buckets, H], "
            f"but position_bias is {list(position_bias.shape)}",
            hint="Pass the layout as packed=, after tunecore.models.encoder_decoder.prepare(model) was called once.",
        )
    return {"relative_bias_BH": position_bias, "buckets": buckets.to(position_bias.device)}


def _spans_of_names(query: Tensor, kwargs: dict[str, Any], dropout: float) -> _Spans:
    """Spans from transformers' names. They carry no key, so dropout takes one from torch's generator."""
    missing = [name for name in _FLASH_NAMES if kwargs.get(name) is None]
    if missing:
        raise ConfigError(f"a packed batch needs all of {', '.join(_FLASH_NAMES)}; {', '.join(missing)} is missing")
    cu_q, cu_k, max_q, max_k = (kwargs[name] for name in _FLASH_NAMES)
    rng = None
    if dropout > 0.0:
        key = _key_of_torch(query.device)
        rng = DropoutKey(key, torch.arange(cu_q.shape[0] - 1, device=query.device), 0)
    return _Spans(cu_q.to(torch.int32), cu_k.to(torch.int32), int(max_q), int(max_k), rng)


def _key_of_torch(device: torch.device) -> Tensor:
    """A key of this call from torch's generator, which gradient checkpointing restores before it recomputes."""
    return torch.randint(0, 2**62, (), dtype=torch.int64, device=device)


def _check_supported(module: nn.Module, query: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    if query.shape[0] != 1:
        raise ConfigError(f"{name}: a packed batch is one row, but its batch size is {query.shape[0]}")
    if attention_mask is not None:
        raise ConfigError(f"{name}: attention_mask cannot be combined with a packed layout", hint="Leave it out.")
    for key in _UNSUPPORTED:
        if kwargs.get(key) is not None and kwargs[key] is not False:
            raise ConfigError(
                f"{name}: packed attention cannot honour {key}",
                hint=f"Leave {key} out, or load the model with attn_implementation='eager' and pad.",
            )


def _skipped_mask(query: Tensor, key: Tensor, causal: bool, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask [1, 1, T, T] that :func:`mask_function` left out although sdpa needs one: a sliding window, or
    sequences told apart by ``position_ids`` alone. None where plain (causal) attention is right.
    """
    length = query.shape[2]
    if query.shape[0] != 1 or length != key.shape[2]:
        return None
    window, positions = kwargs.get("sliding_window"), kwargs.get("position_ids")
    sequence = find_packed_sequence_indices(positions) if causal and _is_row(positions, length) else None
    if sequence is None and (window is None or window >= length):
        return None
    at = torch.arange(length, device=query.device)
    distance = at[:, None] - at[None, :]
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible = visible & (distance.abs() < window)
    if sequence is not None:
        visible = visible & (sequence[0, :, None] == sequence[0, None, :])
    return visible[None, None]


def _is_row(positions: Tensor | None, length: int) -> bool:
    return positions is not None and positions.ndim == 2 and positions.shape[0] == 1 and positions.shape[1] == length


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, mask_function)
