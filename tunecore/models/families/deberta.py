"""DeBERTa, first and second version (the third is the second's model, trained as ELECTRA is)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes, is_class


class DebertaFamily(TransformersFamily):
    """DeBERTa (He et al. 2020, arXiv:2006.03654): attention by content and by distance, in transformers' own code.

    That code takes padded rows only, so batches are padded inside the model.
    """

    model_type = "deberta"
    padded = True
    backbone_class = "DebertaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "DebertaForMaskedLM": frozenset({"masked_lm"}),
        **head_classes("Deberta", without={"multiple_choice"}),
    }
    # What every block reads, and the convolution beside the first.
    embedding_parts = ("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.conv")

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm; transformers' older head has a matrix tied to the embeddings, its newer none."""
        if not is_class(model, "ForMaskedLM"):
            return super().token_head(model, rows_NE)
        if model.legacy:
            predictions = model.cls.predictions
            return predictions.transform(rows_NE), predictions.decoder.weight, predictions.decoder.bias
        head = model.lm_predictions.lm_head
        hidden_NE = head.LayerNorm(head.transform_act_fn(head.dense(rows_NE)))
        return hidden_NE, model.get_input_embeddings().weight, head.bias

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The class's own pooler, which reads the first token of [B, 1, E]; dropout, classifier."""
        logits_BC: Tensor = model.classifier(model.dropout(model.pooler(rows_BE.unsqueeze(1))))
        return logits_BC

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's, with relative positions only, as the published models have them."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        }


class DebertaV2Family(DebertaFamily):
    """DeBERTa v2 and v3 (He et al. 2021, arXiv:2111.09543): distances in buckets that grow with the distance."""

    model_type = "deberta-v2"
    backbone_class = "DebertaV2Model"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        **{name.replace("Deberta", "DebertaV2"): tasks for name, tasks in DebertaFamily.classes.items()},
        "DebertaV2ForMultipleChoice": frozenset({"multiple_choice"}),
    }

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As the published models of version 3: 256 buckets each way, whose projections are those of the content.

        ``conv_kernel_size`` 3 adds the convolution of version 2.
        """
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        more = {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        return fields | more | {"conv_kernel_size": 0, "conv_act": "gelu"}
