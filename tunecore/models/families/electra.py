"""ELECTRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes


class ElectraFamily(TransformersFamily):
    """ELECTRA (Clark et al. 2020, arXiv:2003.10555), generator and discriminator; its embeddings may be narrower."""

    model_type = "electra"
    token_types = 2
    backbone_class = "ElectraModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "ElectraForMaskedLM": frozenset({"masked_lm"}),
        "ElectraForPreTraining": frozenset({"replaced_token_detection"}),
        **head_classes("Electra"),
    }
    embedding_parts = ("embeddings", "embeddings_project")
    classifier_reads_first = True

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The generator's head: rows are brought to the width of the embeddings, which the output matrix shares."""
        head = getattr(model, "generator_lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return model.generator_predictions(rows_NE), head.weight, head.bias

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Summary (dense, activation, dropout) and classifier, as the class for choices has them."""
        logits_B1: Tensor = model.classifier(model.sequence_summary(rows_BE.unsqueeze(1)))
        return logits_B1

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's; embeddings are as wide as the model from 768 on and 128 below, as the paper's models are."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {"embedding_size": width if width >= 768 else 128}
