"""GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tunecore.models.families.base import head_classes, special_ids
from tunecore.models.families.decoder import DecoderFamily


class Gpt2Family(DecoderFamily):
    """GPT-2 (Radford et al. 2019): causal, and a sequence is read from its last token."""

    model_type = "gpt2"
    backbone_class = "GPT2Model"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "GPT2LMHeadModel": frozenset({"causal_lm"}),
        **head_classes("GPT2", without={"multiple_choice"}),
    }
    blocks_path = "h"
    embedding_parts = ("wte", "wpe")
    top_parts = ("ln_f",)

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
