"""DistilBERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes, is_class


class DistilBertFamily(TransformersFamily):
    """DistilBERT (Sanh et al. 2019, arXiv:1910.01108): neither segments nor pooler."""

    model_type = "distilbert"
    backbone_class = "DistilBertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "DistilBertForMaskedLM": frozenset({"masked_lm"}),
        **head_classes("DistilBert"),
    }
    blocks_path = "transformer.layer"

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm on the given rows only."""
        projector = getattr(model, "vocab_projector", None)
        if projector is None:
            return super().token_head(model, rows_NE)
        hidden_NE = model.vocab_layer_norm(model.activation(model.vocab_transform(rows_NE)))
        return hidden_NE, projector.weight, projector.bias

    def span_head(self, model: PreTrainedModel, rows_NE: Tensor) -> Tensor | None:
        """Dropout and the linear layer."""
        return model.qa_outputs(model.dropout(rows_NE)) if is_class(model, "ForQuestionAnswering") else None

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Dense, relu, dropout, classifier."""
        logits_BC: Tensor = model.classifier(model.dropout(nn.functional.relu(model.pre_classifier(rows_BE))))
        return logits_BC

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's, the feed-forward width under its own name."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {"hidden_dim": fields.pop("intermediate_size")}
