"""ALBERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes, special_ids


class AlbertFamily(TransformersFamily):
    """ALBERT (Lan et al. 2019, arXiv:1909.11942): layers that share their weights, and narrow embeddings.

    A block is a group of shared layers (one, unless ``num_hidden_groups`` says more), however often it is called.
    """

    model_type = "albert"
    token_types = 2
    backbone_class = "AlbertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "AlbertForMaskedLM": frozenset({"masked_lm"}),
        "AlbertForPreTraining": frozenset({"masked_lm", "sentence_order"}),
        **head_classes("Albert"),
    }
    blocks_path = "encoder.albert_layer_groups"
    embedding_parts = ("embeddings", "encoder.embedding_hidden_mapping_in")

    def pooled(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Dense and tanh; the rows themselves for a class without a pooler."""
        backbone = self.backbone(model)
        return rows_BE if backbone.pooler is None else backbone.pooler_activation(backbone.pooler(rows_BE))  # type: ignore[operator]

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense to the width of the embeddings, activation and norm; the output matrix is that of the embeddings."""
        head = getattr(model, "predictions", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return head.LayerNorm(head.activation(head.dense(rows_NE))), head.decoder.weight, head.decoder.bias

    def sentence_order(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """Pooler, dropout and ``sop_classifier``: logits [B, 2], column 0 "in order"; None for a class without."""
        head = getattr(model, "sop_classifier", None)
        return None if head is None else head(self.pooled(model, rows_BE))

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's; embeddings 128 wide, as all of the paper's published models have them."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        # transformers' defaults are ids of the published vocabulary.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id")) | special_ids(tokenizer, "bos", "eos")
        return fields | ids | {"embedding_size": 128}
