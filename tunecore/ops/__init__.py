"""The ops: each a native kernel, a PyTorch reference and a custom op under one name."""

from __future__ import annotations

from tunecore.ops.attention import DropoutKey, attention
from tunecore.ops.bias_gelu import bias_gelu
from tunecore.ops.dropout import dropout
from tunecore.ops.embedding import embedding
from tunecore.ops.linear import linear
from tunecore.ops.masked_lm_loss import masked_lm_loss
from tunecore.ops.residual_norm import NormDropout, residual_norm

__all__ = [
    "DropoutKey",
    "NormDropout",
    "attention",
    "bias_gelu",
    "dropout",
    "embedding",
    "linear",
    "masked_lm_loss",
    "residual_norm",
]
