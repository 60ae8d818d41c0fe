"""GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, is_class, special_ids


class Gpt2Family(TransformersFamily):
    """GPT-2 (Radford et al. 2019): causal, and a sequence is read from its last token."""

    model_type = "gpt2"
    sequence_row: Literal["first", "last"] = "last"
    causal = True
    backbone_class = "GPT2Model"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "GPT2LMHeadModel": frozenset({"causal_lm"}),
        "GPT2ForSequenceClassification": frozenset({"sequence_classification"}),
    }
    blocks_path = "h"
    embedding_parts = ("wte", "wpe")
    top_parts = ("ln_f",)

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows themselves (the backbone ends in a norm) and the tied output matrix, without a bias."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return rows_NE, head.weight, None

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """One linear layer without a bias."""
        if not is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.score(rows_BE)
        return logits

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """GPT-2's own names; the feed-forward width is four times the model's by itself."""
        return {
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_positions": max_length,
            "vocab_size": vocab_size,
            # transformers' defaults are ids of OpenAI's vocabulary.
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
            **special_ids(tokenizer, "pad", "bos", "eos"),
        }
