"""RoBERTa."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.models.families.base import TransformersFamily, head_classes, special_ids


class RobertaFamily(TransformersFamily):
    """RoBERTa (Liu et al. 2019, arXiv:1907.11692): positions start at pad_id + 1, and there are no segments."""

    model_type = "roberta"
    backbone_class = "RobertaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "RobertaForMaskedLM": frozenset({"masked_lm"}),
        **head_classes("Roberta"),
    }
    classifier_reads_first = True

    def position_offset(self, model: PreTrainedModel) -> int:
        """One past the padding row of the position table."""
        table = self.backbone(model).get_submodule("embeddings.position_embeddings")
        if not isinstance(table, nn.Embedding) or table.padding_idx is None:
            raise ConfigError("a RoBERTa model needs pad_token_id in its config: its positions start one past it")
        return table.padding_idx + 1

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, gelu and norm on the given rows only."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        hidden_NE = head.layer_norm(nn.functional.gelu(head.dense(rows_NE)))
        return hidden_NE, head.decoder.weight, head.decoder.bias

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's, with room for the pad_id + 1 positions that no token uses, and one segment."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        fields |= special_ids(tokenizer, "bos", "eos") | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
        pad_id = fields.get("pad_token_id", transformers.RobertaConfig.pad_token_id)
        return fields | {"max_position_embeddings": max_length + pad_id + 1}
