"""Next sentence prediction: does the second segment follow the first?

BERT (Devlin et al. 2018, arXiv:1810.04805). A row is a chunk of whole sentences. It is cut at a random sentence
boundary into A and B; half of the time B gives way to the end of a row of another document, cut as its own B would be
and about as long, so that neither length nor where B begins and ends tells the two apart (BERT truncates random pairs;
here they never are). Labels are BERT's: 0 "B follows A", 1 "B is random".

In a corpus of one document there is no other document: the random segment then comes from a row at least a quarter
of the corpus away. A corpus of one row has true pairs only. A chunk of a single token cannot be cut and carries no
target.

Shape letters: B sequences in the batch, E hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunecore.errors import ConfigError
from tunecore.objectives.pairs import FamilyHead, PairObjective, boundaries, cut_at_sentence, part
from tunecore.types import Chunk, CorpusView, Example, Family, Stream, Targets

NAME = "next_sentence"
IS_NEXT, IS_RANDOM = 0, 1
DRAWS = 10
"""Rows that a random segment is chosen from; where all are of the same document, a distant row is taken."""


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
            second, label = _random_segment(corpus, chunk, length - cut, max(0, room), stream), IS_RANDOM
            example = corpus.add_special(first, second)
        return replace(example, targets={**example.targets, NAME: Targets.of_sequence(label)})


def _random_segment(corpus: CorpusView, chunk: Chunk, length: int, room: int, stream: Stream) -> Chunk:
    """The end of another row, from a sentence on, as near to ``length`` tokens as some rows have it and at most
    ``room`` longer.

    Where the true segment begins within a sentence, or no sentence fits, it is the row's last ``length`` tokens.
    """
    others = _other_rows(corpus, chunk, stream)
    if len(boundaries(chunk)):
        ends = [(abs(size - length), other, size) for other in others for size in _sizes(other, length + room)]
        if ends:
            _, other, size = min(ends, key=lambda end: end[0])
            return part(other, len(other.ids) - size, len(other.ids))
    other = others[0]
    return part(other, max(0, len(other.ids) - length), len(other.ids))


def _sizes(chunk: Chunk, most: int) -> list[int]:
    """Tokens from each inner sentence to the end of a chunk, those up to ``most``."""
    sizes = len(chunk.ids) - boundaries(chunk)
    return [int(size) for size in sizes[sizes <= most]]


def _other_rows(corpus: CorpusView, chunk: Chunk, stream: Stream) -> list[Chunk]:
    """Rows of other documents; where ten draws find none, one a quarter of the corpus or more away."""
    n = len(corpus)
    drawn = [corpus[int(row)] for row in stream.integers(0, n, DRAWS)]
    others = [other for other in drawn if other.document != chunk.document and len(other.ids) > 0]
    if others:
        return others
    quarter = max(1, n // 4)
    distance = int(stream.integers(quarter, max(quarter + 1, n - quarter), 1)[0])
    return [corpus[(chunk.row_id + distance) % n]]
