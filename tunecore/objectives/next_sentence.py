"""Next sentence prediction: does the second segment follow the first?

BERT (Devlin et al. 2018, arXiv:1810.04805). A row is a chunk of whole sentences. It is cut at a random sentence
boundary into A and B; half of the time B gives way to sentences of another document, about as many tokens as B had
(otherwise the length alone would tell). Labels are BERT's: 0 "B follows A", 1 "B is random".

In a corpus of one document there is no other document: the random segment then comes from a row at least a quarter
of the corpus away. A corpus of one row has true pairs only. A chunk of a single token cannot be cut and carries no
target.

Shape letters: B sequences in the batch, E hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tunecore.errors import ConfigError
from tunecore.objectives.pairs import FamilyHead, PairObjective, boundaries, cut_at_sentence, part
from tunecore.types import Chunk, CorpusView, Example, Family, Stream, Targets

NAME = "next_sentence"
IS_NEXT, IS_RANDOM = 0, 1
OTHER_DOCUMENT_DRAWS = 10
"""Draws of a row of another document before a distant row of any document is taken."""


@dataclass(frozen=True, kw_only=True)
class NextSentenceOptions:
    """Options of next_sentence."""

    random_probability: float = 0.5
    """Share of rows whose second segment is random."""

    def __post_init__(self) -> None:
        if not 0 < self.random_probability < 1:
            raise ConfigError(f"{NAME}.random_probability is {self.random_probability}; it must be between 0 and 1")


class NextSentence(PairObjective):
    """The objective ``next_sentence``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: NextSentenceOptions) -> None:
        self.options = options

    def family_head(self, family: Family) -> FamilyHead:
        """The family's method that has this head."""
        return family.sequence_relationship

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """[CLS] A [SEP] B [SEP] with its label, cut to the corpus's ``max_length``."""
        chunk = corpus[row_id]
        length = len(chunk.ids)
        if length < 2:
            return corpus.add_special(chunk)
        cut = cut_at_sentence(chunk, stream)
        first, second, label = part(chunk, 0, cut), part(chunk, cut, length), IS_NEXT
        example = corpus.add_special(first, second)
        if len(corpus) > 1 and stream.uniform(1)[0] < self.options.random_probability:
            room = corpus.max_length - len(example)
            second, label = _random_segment(corpus, chunk, length - cut, room, stream), IS_RANDOM
            example = corpus.add_special(first, second)
        excess = len(example) - corpus.max_length
        if excess > 0:
            example = corpus.add_special(*_truncate(first, second, excess, stream))
        return replace(example, targets={**example.targets, NAME: Targets.of_sequence(label)})


def _random_segment(corpus: CorpusView, chunk: Chunk, length: int, room: int, stream: Stream) -> Chunk:
    """Whole sentences of another document, as near to ``length`` tokens as they come.

    No more than ``room`` tokens longer, so that truncation, which no true pair knows, is left for a first sentence
    that is too long by itself.
    """
    other = _other_row(corpus, chunk, stream)
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), boundaries(other), np.asarray([len(other.ids)])])
    at = int(stream.integers(0, len(bounds) - 1, 1)[0])
    begin, stops = int(bounds[at]), bounds[at + 1 :]
    fitting = stops[stops - begin <= length + max(room, 0)]
    stop = int(fitting[np.abs(fitting - begin - length).argmin()]) if len(fitting) else int(stops[0])
    return part(other, begin, stop)


def _other_row(corpus: CorpusView, chunk: Chunk, stream: Stream) -> Chunk:
    """A row of another document; where ten draws find none, a row at least a quarter of the corpus away."""
    n = len(corpus)
    for row in stream.integers(0, n, OTHER_DOCUMENT_DRAWS):
        other = corpus[int(row)]
        if other.document != chunk.document and len(other.ids) > 0:
            return other
    quarter = max(1, n // 4)
    distance = int(stream.integers(quarter, max(quarter + 1, n - quarter), 1)[0])
    return corpus[(chunk.row_id + distance) % n]


def _truncate(first: Chunk, second: Chunk, excess: int, stream: Stream) -> tuple[Chunk, Chunk]:
    """Drop ``excess`` tokens one at a time from the longer segment, at its front or its back by a coin (BERT)."""
    bounds = [[0, len(first.ids)], [0, len(second.ids)]]
    for coin in stream.uniform(excess):
        lengths = [stop - start for start, stop in bounds]
        longer = bounds[0] if lengths[0] > lengths[1] else bounds[1]
        if coin < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return part(first, *bounds[0]), part(second, *bounds[1])
