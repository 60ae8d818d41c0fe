"""The ops: each a native kernel, a PyTorch reference and a custom op under one name."""

from __future__ import annotations

from tunecore.ops.attention import DropoutKey, attention
from tunecore.ops.dropout import dropout
from tunecore.ops.masked_lm_loss import masked_lm_loss

__all__ = ["DropoutKey", "attention", "dropout", "masked_lm_loss"]
