"""Small models and batches that the tests of tunecore.models share; makes ``two_stacks`` importable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.models.padded import padded_hidden
from tunecore.types import PackedLayout

sys.path.insert(0, str(Path(__file__).resolve().parent))

_BERT_LIKE = ("bert", "roberta", "electra", "albert", "ernie", "xlm-roberta", "deberta", "deberta-v2")
NO_DROPOUT: dict[str, dict[str, Any]] = {
    **{name: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} for name in _BERT_LIKE},
    "albert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "modernbert": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
    "mistral": {},
}
ATTENTION_DROPOUT = {
    **dict.fromkeys(_BERT_LIKE, "attention_probs_dropout_prob"),
    **dict.fromkeys(("distilbert", "modernbert", "llama", "mistral"), "attention_dropout"),
    "gpt2": "attn_pdrop",
}
HIDDEN_DROPOUT: dict[str, dict[str, Any]] = {
    **{name: {"hidden_dropout_prob": 0.3} for name in _BERT_LIKE},
    "distilbert": {"dropout": 0.3},
    "modernbert": {"embedding_dropout": 0.3, "mlp_dropout": 0.3, "attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3},
}
"""Families with dropout beside that of attention (Llama has none)."""
PAD = {"roberta": 1, "xlm-roberta": 1}
VOCAB = 61


class Packed(NamedTuple):
    """Sequences in both layouts: end to end (with a filler that rounds T up to 8), and padded to [B, L]."""

    sequences: list[Tensor]
    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    layout: PackedLayout
    rows: list[slice]
    padded_ids: Tensor
    padded_types: Tensor | None
    mask: Tensor

    def unpad(self, padded_BLE: Tensor) -> Tensor:
        """The rows of real tokens, end to end."""
        return padded_BLE[self.mask.bool()]

    def inputs(self, names: str = "packed") -> dict[str, Any]:
        """Keyword arguments of a backbone."""
        layout = self.layout
        found: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids, "use_cache": False}
        if self.token_type_ids is not None:
            found["token_type_ids"] = self.token_type_ids
        if names == "packed":
            return found | {"packed": layout}
        return found | {
            "cu_seq_lens_q": layout.cu_seqlens,
            "cu_seq_lens_k": layout.cu_seqlens,
            "max_length_q": layout.max_seqlen,
            "max_length_k": layout.max_seqlen,
        }

    def hidden(self, model_type: str, model: PreTrainedModel, names: str = "packed") -> Tensor:
        """Hidden states [T, E] of the backbone, by the packed or the padded way as the family has it."""
        backbone, inputs = FAMILIES[model_type].backbone(model), self.inputs(names)
        if not getattr(FAMILIES[model_type], "padded", False):
            return backbone(**inputs).last_hidden_state[0]
        tokens = {name: tensor for name, tensor in inputs.items() if name.endswith("_ids")}
        return padded_hidden(backbone, tokens, self.layout, len(self.sequences), PAD.get(model_type, 0))

    def padded_inputs(self) -> dict[str, Any]:
        found: dict[str, Any] = {"input_ids": self.padded_ids, "attention_mask": self.mask}
        return found if self.padded_types is None else found | {"token_type_ids": self.padded_types}


def pack(model_type: str, model: PreTrainedModel, lengths: list[int], seed: int = 0, key: int | None = None) -> Packed:
    family = FAMILIES[model_type]
    pad = PAD.get(model_type, 0)
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(4, VOCAB, (n,), generator=generator) for n in lengths]
    types = [torch.randint(0, 2, (n,), generator=generator) for n in lengths] if family.token_types else None
    filler = -sum(lengths) % 8
    all_lengths = lengths + ([filler] if filler else [])
    cu = torch.tensor([0, *torch.tensor(all_lengths).cumsum(0).tolist()], dtype=torch.int32)
    offset = family.position_offset(model)
    tail = torch.full((filler,), pad)
    longest = max(lengths)
    padded = torch.full((len(lengths), longest), pad)
    mask = torch.zeros(len(lengths), longest, dtype=torch.int64)
    padded_types = torch.zeros_like(padded)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
        if types is not None:
            padded_types[row, : len(sequence)] = types[row]
    row_ids = torch.tensor([*range(100, 100 + len(lengths)), *([-1] if filler else [])])
    layout = PackedLayout(cu, max(all_lengths))
    if key is not None:
        layout = layout._replace(rng_key=torch.tensor(key), row_ids=row_ids)
    return Packed(
        sequences=sequences,
        input_ids=torch.cat([*sequences, tail])[None],
        position_ids=torch.cat([torch.arange(n) + offset for n in all_lengths])[None],
        token_type_ids=None if types is None else torch.cat([*types, torch.zeros(filler, dtype=torch.int64)])[None],
        layout=layout,
        rows=[slice(int(cu[i]), int(cu[i + 1])) for i in range(len(lengths))],
        padded_ids=padded,
        padded_types=None if types is None else padded_types,
        mask=mask,
    )


def small(model_type: str, tasks: set[str], seed: int = 0, max_length: int = 24, **overrides: Any) -> PreTrainedModel:
    """A model of 2 blocks and width 32 without dropout."""
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    shape[{"distilbert": "hidden_dim", "gpt2": "n_inner"}.get(model_type, "intermediate_size")] = 48
    return build_model(
        FAMILIES[model_type],
        frozenset(tasks),
        size="tiny",
        vocab_size=VOCAB,
        max_length=max_length,
        overrides={**shape, **NO_DROPOUT[model_type], "initializer_range": 0.3, **overrides},
        seed=seed,
    )


@pytest.fixture(scope="session")
def make_small() -> Callable[..., PreTrainedModel]:
    return small


@pytest.fixture(scope="session")
def make_packed() -> Callable[..., Packed]:
    return pack


@pytest.fixture(scope="session")
def attention_dropout() -> dict[str, str]:
    return ATTENTION_DROPOUT


@pytest.fixture(scope="session")
def hidden_dropout() -> dict[str, dict[str, Any]]:
    return HIDDEN_DROPOUT
