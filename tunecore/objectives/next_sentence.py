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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Chunk, CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream, Targets

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


class NextSentence:
    """The objective ``next_sentence``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "pair"
    columns: tuple[str, ...] = ("sentence_starts",)
    view = "encoder"
    losses: tuple[str, ...] = (NAME,)
    reads = ("sequence_rows",)

    def __init__(self, options: NextSentenceOptions) -> None:
        self.options = options

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """A linear layer [E] -> [2] on the pooled row, or None where the transformers class has this head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        if family.causal:
            raise ConfigError(
                f"{NAME} needs a model that reads both ways; {family.model_type} is causal",
                hint="Use the objective causal_lm, or a family such as bert or roberta.",
            )
        width = int(model.config.hidden_size)
        with torch.no_grad():
            probe_1E = torch.zeros(1, width, dtype=model.dtype, device=model.device)
            if family.sequence_relationship(model, probe_1E) is not None:
                return None
        layer = nn.Linear(width, 2)
        nn.init.normal_(layer.weight, std=float(getattr(model.config, "initializer_range", 0.02)))
        nn.init.zeros_(layer.bias)
        return layer

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """[CLS] A [SEP] B [SEP] with its label, cut to the corpus's ``max_length``."""
        chunk = corpus[row_id]
        length = len(chunk.ids)
        if length < 2:
            return corpus.add_special(chunk)
        cut = _cut(chunk, stream)
        first, second, label = _part(chunk, 0, cut), _part(chunk, cut, length), IS_NEXT
        example = corpus.add_special(first, second)
        if len(corpus) > 1 and stream.uniform(1)[0] < self.options.random_probability:
            room = corpus.max_length - len(example)
            second, label = _random_segment(corpus, chunk, length - cut, room, stream), IS_RANDOM
            example = corpus.add_special(first, second)
        excess = len(example) - corpus.max_length
        if excess > 0:
            example = corpus.add_special(*_truncate(first, second, excess, stream))
        return replace(example, targets={**example.targets, NAME: Targets.of_sequence(label)})

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """The example as it is: its target came with ``assemble``."""
        return example

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the two classes in fp32, summed over the sequences that carry a label."""
        targets = forward.batch.targets.get(NAME)
        rows_BE = forward.sequence_rows()
        if targets is None:
            return {NAME: LossSum(rows_BE[:0].float().sum(), 0)}
        rows_BE = rows_BE.index_select(0, targets.index)
        logits_B2 = _logits(forward, module, rows_BE).float()
        total = F.cross_entropy(logits_B2, targets.labels, reduction="sum")
        correct = (logits_B2.detach().argmax(-1) == targets.labels).sum()
        return {NAME: LossSum(total, int(targets.labels.shape[0]), correct)}


def _logits(forward: Forward, module: nn.Module | None, rows_BE: torch.Tensor) -> torch.Tensor:
    if module is not None:
        logits: torch.Tensor = module(forward.family.pooled(forward.model, rows_BE))
        return logits
    own = forward.family.sequence_relationship(forward.model, rows_BE)
    assert own is not None, "build() returned None only where the class has the head"
    return own


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Tokens start, ..., stop - 1 of a chunk."""
    columns = {name: column[start:stop] for name, column in chunk.columns.items()}
    return Chunk(chunk.row_id, chunk.document, chunk.start + start, chunk.ids[start:stop], columns)


def _boundaries(chunk: Chunk) -> IntArray:
    """Positions after the first at which a sentence starts."""
    inner = np.flatnonzero(chunk.columns["sentence_starts"][1:]) + 1
    return inner.astype(np.int64)


def _cut(chunk: Chunk, stream: Stream) -> int:
    """Where A ends: a random sentence boundary, or the middle of a chunk of one sentence."""
    inner = _boundaries(chunk)
    if len(inner) == 0:
        return len(chunk.ids) // 2
    return int(inner[stream.integers(0, len(inner), 1)[0]])


def _random_segment(corpus: CorpusView, chunk: Chunk, length: int, room: int, stream: Stream) -> Chunk:
    """Whole sentences of another document, as near to ``length`` tokens as they come.

    No more than ``room`` tokens longer, so that truncation, which no true pair knows, is left for a first sentence
    that is too long by itself.
    """
    other = _other_row(corpus, chunk, stream)
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), _boundaries(other), np.asarray([len(other.ids)])])
    at = int(stream.integers(0, len(bounds) - 1, 1)[0])
    begin, stops = int(bounds[at]), bounds[at + 1 :]
    fitting = stops[stops - begin <= length + max(room, 0)]
    stop = int(fitting[np.abs(fitting - begin - length).argmin()]) if len(fitting) else int(stops[0])
    return _part(other, begin, stop)


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
    return _part(first, *bounds[0]), _part(second, *bounds[1])
