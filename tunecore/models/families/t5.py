"""T5."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import special_ids
from tunecore.models.families.encoder_decoder import EncoderDecoderFamily


class T5Family(EncoderDecoderFamily):
    """T5 (Raffel et al. 2020, arXiv:1910.10683): relative positions, no bias anywhere; v1.0 and v1.1."""

    model_type = "t5"
    backbone_class = "T5Model"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {"T5ForConditionalGeneration": frozenset({"span_corruption"})}
    blocks_path = "block"
    embedding_parts = ("embed_tokens",)
    top_parts = ("final_layer_norm",)

    @property
    def default_objective(self) -> str:
        """The paper's."""
        return "span_corruption"

    def max_length(self, model: PreTrainedModel) -> int:
        """No limit: positions are relative."""
        return sys.maxsize

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The decoder's rows and the output matrix; v1.0, which ties it to the embeddings, scales the rows."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        config = model.config
        if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
            rows_NE = rows_NE * config.d_model**-0.5
        return rows_NE, head.weight, None

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """Each stack has ``layers`` layers; the decoder starts with the padding token, as in the paper."""
        ids = {"pad_token_id": 0, "eos_token_id": 1, **special_ids(tokenizer, "pad", "eos")}
        return {
            "num_layers": layers,
            "d_model": width,
            "num_heads": heads,
            "d_kv": width // heads,
            "d_ff": 4 * width,
            "vocab_size": vocab_size,
            **ids,
            "decoder_start_token_id": ids["pad_token_id"],
        }
