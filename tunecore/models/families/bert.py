"""BERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily, head_classes


class BertFamily(TransformersFamily):
    """BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    model_type = "bert"
    token_types = 2
    backbone_class = "BertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "BertForMaskedLM": frozenset({"masked_lm"}),
        "BertForPreTraining": frozenset({"masked_lm", "next_sentence"}),
        "BertForNextSentencePrediction": frozenset({"next_sentence"}),
        **head_classes("Bert"),
    }

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm on the given rows only; the output matrix is tied to the embeddings."""
        predictions = getattr(getattr(model, "cls", None), "predictions", None)
        if predictions is None:
            return super().token_head(model, rows_NE)
        decoder = predictions.decoder
        return predictions.transform(rows_NE), decoder.weight, decoder.bias

    def sequence_relationship(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """Pooler and ``cls.seq_relationship``; column 0 is "is next"."""
        layer = getattr(getattr(model, "cls", None), "seq_relationship", None)
        return None if layer is None else layer(self.pooled(model, rows_BE))
