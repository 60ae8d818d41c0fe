"""The loss over the vocabulary at the rows of a forward that have a target: what objectives and heads share.

Shape letters: T tokens in the batch, N rows with a target, E hidden width, V vocabulary.
"""

from __future__ import annotations

import math

from tunecore.errors import ConfigError
from tunecore.ops.masked_lm_loss import masked_lm_loss
from tunecore.types import Forward, LossSum


def vocabulary_loss(forward: Forward, name: str, *, label_smoothing: float, z_loss: float) -> LossSum:
    """Cross-entropy over the vocabulary at the rows of ``batch.targets[name]``, summed.

    Only these N of the T rows [T, E] meet the prediction head and the vocabulary. A batch without targets of that
    name gives a sum of 0 over 0 targets.
    """
    targets = forward.batch.targets.get(name)
    hidden_TE = forward.hidden()
    if targets is None:
        return LossSum(hidden_TE[:0].float().sum(), 0)
    rows_NE = hidden_TE.index_select(0, targets.index)
    hidden_NE, weight_VE, bias_V = forward.family.token_head(forward.model, rows_NE)
    return masked_lm_loss(
        hidden_NE, weight_VE, bias_V, targets.labels,
        ignore_index=None, label_smoothing=label_smoothing, z_loss=z_loss,
    )


def check_loss_options(owner: str, label_smoothing: float, z_loss: float) -> None:
    """Raise ConfigError where an option of the vocabulary loss is out of range."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"{owner}.label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    if not 0 <= z_loss < math.inf:
        raise ConfigError(f"{owner}.z_loss is {z_loss}; it must not be negative")
