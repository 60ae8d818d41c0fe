"""Sentence order prediction: do the two segments stand in the order of the text?

ALBERT (Lan et al. 2019, arXiv:1909.11942): two consecutive segments of one document, swapped half of the time. Both
cases hold the same words, so the topic tells nothing (it tells much of next_sentence). Labels are ALBERT's: 0 "in
order", 1 "swapped".

A row is a chunk of whole sentences, cut at a random sentence boundary, or in the middle of its only sentence. A chunk
of a single token cannot be cut and carries no target.

Shape letters: B sequences in the batch, E hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunecore.errors import ConfigError
from tunecore.objectives.pairs import FamilyHead, PairObjective, cut_at_sentence, part
from tunecore.types import CorpusView, Example, Family, Stream, Targets

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


class SentenceOrder(PairObjective):
    """The objective ``sentence_order``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: SentenceOrderOptions) -> None:
        self.options = options

    def family_head(self, family: Family) -> FamilyHead:
        """The family's method that has this head."""
        return family.sentence_order

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
