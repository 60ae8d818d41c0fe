"""Shuffled-token detection: some tokens trade places; say of every token whether it was moved.

Yamaguchi et al. 2021, "Frustratingly Simple Pretraining Alternatives to Masked Language Modeling" (arXiv:2109.01819).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from tunecore.errors import ConfigError
from tunecore.types import CorpusView, Example, Forward, LossSum, Progress, Stream, Targets


@dataclass(frozen=True)
class ShuffledTokensOptions:
    """Options of shuffled_tokens."""

    rate: float = 0.15
    """Share of the tokens that trade places."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ConfigError(f"shuffled_tokens.rate is {self.rate}; it must be above 0 and at most 1")


class ShuffledTokens:
    """The objective ``shuffled_tokens``."""

    name, unit, view = "shuffled_tokens", "document", "encoder"
    columns: tuple[str, ...] = ()
    losses = ("shuffled_tokens",)

    def __init__(self, options: ShuffledTokensOptions) -> None:
        self.options = options

    def build(self, model: Any, family: Any) -> nn.Module:
        """One logit for each token."""
        return nn.Linear(model.config.hidden_size, 1)

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        ordinary = np.flatnonzero(~example.columns["special"])
        chosen = ordinary[stream.permutation(len(ordinary))[: max(2, round(self.options.rate * len(ordinary)))]]
        ids = example.input_ids.copy()
        ids[chosen] = ids[np.roll(chosen, 1)]
        moved = (ids != example.input_ids)[ordinary].astype(np.float32)
        return replace(example, input_ids=ids, targets={**example.targets, self.name: Targets(ordinary, moved)})

    def loss(self, forward: Forward, module: nn.Module, stream: Stream | None) -> Mapping[str, LossSum]:
        targets = forward.batch.targets[self.name]
        logits = module(forward.hidden()[targets.index]).squeeze(-1).float()
        total = F.binary_cross_entropy_with_logits(logits, targets.labels, reduction="sum")
        correct = ((logits.detach() > 0) == (targets.labels > 0.5)).sum()
        return {self.name: LossSum(total, len(targets.labels), correct)}
