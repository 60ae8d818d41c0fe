"""Causal language modelling: predict each token from those before it.

GPT (Radford et al. 2018) and GPT-2 (Radford et al. 2019). Every token but a sequence's first is a target; targets
never cross the boundary of a packed sequence.

Shape letters: L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.vocabulary import check_loss_options, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, LossSum, Progress, Stream, Targets

NAME = "causal_lm"


@dataclass(frozen=True, kw_only=True)
class CausalLMOptions:
    """Options of causal_lm."""

    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale in check."""

    def __post_init__(self) -> None:
        check_loss_options(NAME, self.label_smoothing, self.z_loss)


class CausalLM:
    """The objective ``causal_lm``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "document"
    columns: tuple[str, ...] = ()
    view = "causal"
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: CausalLMOptions) -> None:
        self.options = options

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the family reads both ways, so each token would see its own answer.
        """
        if not family.causal:
            raise ConfigError(
                f"{NAME} needs a model that reads from left to right; {family.model_type} reads both ways",
                hint="Use the objective masked_lm, or a family such as gpt2.",
            )
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk with the special tokens of the family."""
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Add the next token of each of the first L - 1 positions as its target; the inputs stay."""
        if len(example) < 2:
            return example
        index = np.arange(len(example) - 1, dtype=np.int64)
        targets = Targets(index, example.input_ids[1:].astype(np.int64))
        return replace(example, targets={**example.targets, NAME: targets})

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the next tokens, summed."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}
