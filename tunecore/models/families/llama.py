"""Llama, and Mistral, which is built alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, is_class, special_ids


class LlamaFamily(TransformersFamily):
    """Llama (Touvron et al. 2023, arXiv:2302.13971): causal, rotary positions, RMSNorm, grouped kv-heads.

    Grouped kv-heads (Ainslie et al. 2023, arXiv:2305.13245) are the config field ``num_key_value_heads``.
    """

    model_type = "llama"
    sequence_row: Literal["first", "last"] = "last"
    causal = True
    backbone_class = "LlamaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "LlamaForCausalLM": frozenset({"causal_lm"}),
        "LlamaForSequenceClassification": frozenset({"sequence_classification"}),
    }
    blocks_path = "layers"
    embedding_parts = ("embed_tokens",)
    top_parts = ("norm",)

    def max_length(self, model: PreTrainedModel) -> int:
        """The length it was made for; there is no table that ends there."""
        return int(model.config.max_position_embeddings)

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows themselves (the backbone ends in a norm) and an output matrix of its own, without a bias."""
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
