"""ModernBERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes, is_class, special_ids

_SPECIAL = ("pad", "bos", "eos", "cls", "sep")


class ModernBertFamily(TransformersFamily):
    """ModernBERT (Warner et al. 2024, arXiv:2412.13663): rotary positions, and most layers see only a window."""

    model_type = "modernbert"
    backbone_class = "ModernBertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "ModernBertForMaskedLM": frozenset({"masked_lm"}),
        **head_classes("ModernBert"),
    }
    blocks_path = "layers"
    top_parts = ("final_norm",)

    def max_length(self, model: PreTrainedModel) -> int:
        """The length it was made for; there is no table that ends there."""
        return int(model.config.max_position_embeddings)

    def sequence_pooling(self, model: PreTrainedModel) -> Literal["first", "last", "mean"]:
        """The mean over a sequence where the classifier's config says so, as that of the published models does."""
        classifies = is_class(model, "ForSequenceClassification") or is_class(model, "ForMultipleChoice")
        return "mean" if classifies and model.config.classifier_pooling == "mean" else "first"

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm on the given rows only."""
        if not is_class(model, "ForMaskedLM"):
            return super().token_head(model, rows_NE)
        return model.head(rows_NE), model.decoder.weight, model.decoder.bias

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The prediction head's layers, dropout, classifier; every class with a head has them."""
        logits_BC: Tensor = model.classifier(model.drop(model.head(rows_BE)))
        return logits_BC

    def token_classifier(self, model: PreTrainedModel, rows_NE: Tensor) -> Tensor | None:
        """The same layers."""
        return self.classified(model, rows_NE) if is_class(model, "ForTokenClassification") else None

    def span_head(self, model: PreTrainedModel, rows_NE: Tensor) -> Tensor | None:
        """The same layers, with two columns."""
        return self.classified(model, rows_NE) if is_class(model, "ForQuestionAnswering") else None

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's; the gated feed-forward layer is one and a half times as wide as the model, as in the paper."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        # transformers' defaults are ids of the published vocabulary.
        ids: dict[str, Any] = dict.fromkeys(f"{name}_token_id" for name in _SPECIAL)
        return fields | ids | special_ids(tokenizer, *_SPECIAL) | {"intermediate_size": 3 * width // 2}
