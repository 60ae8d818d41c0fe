"""Llama, and Mistral, which is built alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedModel

from tunecore.models.families.base import head_classes, special_ids
from tunecore.models.families.decoder import DecoderFamily


class LlamaFamily(DecoderFamily):
    """Llama (Touvron et al. 2023, arXiv:2302.13971): causal, rotary positions, RMSNorm, grouped kv-heads.

    Grouped kv-heads (Ainslie et al. 2023, arXiv:2305.13245) are the config field ``num_key_value_heads``.
    """

    model_type = "llama"
    backbone_class = "LlamaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "LlamaForCausalLM": frozenset({"causal_lm"}),
        **head_classes("Llama", without={"extractive_qa", "multiple_choice"}),
    }
    blocks_path = "layers"
    embedding_parts = ("embed_tokens",)
    top_parts = ("norm",)

    def max_length(self, model: PreTrainedModel) -> int:
        """The length it was made for; there is no table that ends there."""
        return int(model.config.max_position_embeddings)

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """The gated feed-forward layer is 8/3 as wide as the model: as many weights as four times without a gate."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        # transformers' defaults are ids of the published vocabulary.
        ids: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        ids |= special_ids(tokenizer, "pad", "bos", "eos")
        if ids["pad_token_id"] in (ids["bos_token_id"], ids["eos_token_id"]):
            # The embedding of the padding token is never learned; one that is also text must be.
            ids["pad_token_id"] = None
        return fields | ids | {"intermediate_size": -(-width // 3) * 8}


class MistralFamily(LlamaFamily):
    """Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a window, 4096 tokens unless the config says other."""

    model_type = "mistral"
    backbone_class = "MistralModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        name.replace("Llama", "Mistral"): tasks for name, tasks in LlamaFamily.classes.items()
    }

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As Llama's, with as many kv-heads as heads; transformers' default is that of the published model."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {"num_key_value_heads": heads}
