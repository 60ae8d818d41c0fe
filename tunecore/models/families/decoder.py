"""What causal models of one stack share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from tunecore.models.families.base import TransformersFamily


class DecoderFamily(TransformersFamily):
    """A causal model that ends in a norm, with heads ``lm_head`` and ``score``; read from a sequence's last token."""

    sequence_row: Literal["first", "last"] = "last"
    causal = True

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows themselves and the output matrix, without a bias."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return rows_NE, head.weight, None

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """One linear layer without a bias."""
        logits_BC: Tensor = model.score(rows_BE)
        return logits_BC
