"""Sentence order prediction: do the two segments stand in the order of the text?

ALBERT (Lan et al. 2019, arXiv:1909.11942): two consecutive segments of one document, swapped half of the time. Both
cases hold the same words, so the topic tells nothing (it tells much of next_sentence). Labels are ALBERT's: 0 "in
order", 1 "swapped".

A row is a chunk of whole sentences, cut at a random sentence boundary, or in the middle of its only sentence. A chunk
of a single token cannot be cut and carries no target.

Shape letters: B sequences in the batch, E hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.pairs import check_assembled_here, cut_at_sentence, pair_head, pair_loss, part
from tunecore.objectives.vocabulary import refuse_causal
from tunecore.types import CorpusView, Example, Family, Forward, LossSum, Progress, Stream, Targets

NAME = "sentence_order"
IN_ORDER, SWAPPED = 0, 1


@dataclass(frozen=True, kw_only=True)
class SentenceOrderOptions:
    """Options of sentence_order."""

    swap_probability: float = 0.5
    """Share of rows whose segments are swapped."""

    def __post_init__(self) -> None:
        if not 0 < self.swap_probability < 1:
            raise ConfigError(f"{NAME}.swap_probability is {self.swap_probability}; it must be between 0 and 1")


class SentenceOrder:
    """The objective ``sentence_order``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "pair"
    columns: tuple[str, ...] = ("sentence_starts",)
    view = "encoder"
    losses: tuple[str, ...] = (NAME,)
    reads = ("sequence_rows",)

    def __init__(self, options: SentenceOrderOptions) -> None:
        self.options = options

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """A linear layer [E] -> [2] on the pooled row, or None where the transformers class has this head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        refuse_causal(NAME, family)
        return pair_head(model, family.sentence_order)

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """[CLS] A [SEP] B [SEP] or [CLS] B [SEP] A [SEP], with its label."""
        chunk = corpus[row_id]
        length = len(chunk.ids)
        if length < 2:
            return corpus.add_special(chunk)
        cut = cut_at_sentence(chunk, stream)
        segments, label = (part(chunk, 0, cut), part(chunk, cut, length)), IN_ORDER
        if stream.uniform(1)[0] < self.options.swap_probability:
            segments, label = (segments[1], segments[0]), SWAPPED
        example = corpus.add_special(*segments)
        return replace(example, targets={**example.targets, NAME: Targets.of_sequence(label)})

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """The example as it is: its target came with ``assemble``.

        Raises:
            ConfigError: another objective laid the pair out.
        """
        check_assembled_here(NAME, example)
        return example

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the two classes in fp32, summed over the sequences that carry a label."""
        return {NAME: pair_loss(forward, module, NAME, lambda family: family.sentence_order)}
