"""BART."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import special_ids
from tunecore.models.families.encoder_decoder import EncoderDecoderFamily


class BartFamily(EncoderDecoderFamily):
    """BART (Lewis et al. 2019, arXiv:1910.13461): learned positions in each stack, whose table adds its own offset."""

    model_type = "bart"
    backbone_class = "BartModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {"BartForConditionalGeneration": frozenset({"denoising"})}
    base_path = "model"
    blocks_path = "layers"
    embedding_parts = ("embed_tokens", "embed_positions", "layernorm_embedding")

    @property
    def default_objective(self) -> str:
        """The paper's."""
        return "denoising"

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The decoder's rows, the tied output matrix, and the bias of the logits, a buffer."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return rows_NE, head.weight, model.final_logits_bias[0].to(head.weight.dtype)

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """Each stack has ``layers`` layers; the decoder starts with the end token, as in the paper."""
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **special_ids(tokenizer, "pad", "bos", "eos")}
        stacks = {
            f"{stack}_{name}": value
            for stack in ("encoder", "decoder")
            for name, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))
        }
        return {
            "d_model": width,
            **stacks,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_length,
            **ids,
            "decoder_start_token_id": ids["eos_token_id"],
            "forced_eos_token_id": ids["eos_token_id"],
        }
