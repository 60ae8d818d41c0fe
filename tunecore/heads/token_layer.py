"""A linear layer over tokens, for models whose transformers class has none for the task.

Shape letters: N rows, E hidden width, C outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_DROPOUTS = ("classifier_dropout", "hidden_dropout_prob", "dropout", "resid_pdrop")
"""Fields of configs that say how much of the rows before a classifier is dropped; the first that is set counts."""


class TokenLayer(nn.Module):
    """Dropout and a linear layer: rows [N, E] -> [N, C], weights drawn as the model's own are.

    Args:
        model: gives the width, the spread of new weights and the dropout.
        num_outputs: C.
        dropout: False leaves dropout out.
    """

    def __init__(self, model: PreTrainedModel, num_outputs: int, *, dropout: bool = True) -> None:
        super().__init__()
        config: Any = model.config
        rates = (getattr(config, name, None) for name in _DROPOUTS)
        self.dropout = nn.Dropout(next((float(rate) for rate in rates if rate is not None), 0.0) if dropout else 0.0)
        self.linear = nn.Linear(int(config.hidden_size), num_outputs)
        nn.init.normal_(self.linear.weight, std=float(getattr(config, "initializer_range", 0.02)))
        nn.init.zeros_(self.linear.bias)

    def forward(self, rows_NE: Tensor) -> Tensor:
        logits_NC: Tensor = self.linear(self.dropout(rows_NE))
        return logits_NC


def own_layer(model: PreTrainedModel, part: Any, num_outputs: int, *, dropout: bool = True) -> TokenLayer | None:
    """A layer for ``model``, or None where it has one.

    Args:
        model: the model.
        part: the family's way to the class's own layer, ``(model, rows) -> logits | None``; None where the family
            has none.
        num_outputs: C of a new layer.
        dropout: whether a new layer drops out.
    """
    if part is not None:
        first = next(model.parameters())
        rows_0E = torch.zeros(0, int(model.config.hidden_size), dtype=first.dtype, device=first.device)
        with torch.no_grad():
            if part(model, rows_0E) is not None:
                return None
    return TokenLayer(model, num_outputs, dropout=dropout)
