"""Span corruption: spans of the text give way to sentinels, and the decoder writes each sentinel with what it hides.

T5 (Raffel et al. 2020, arXiv:1910.10683), as its published preprocessing has it: 15 % of the tokens in spans of 3 on
average, kept and hidden spans in turn, a kept one first. The k-th span becomes ``<extra_id_k>``, whose ids descend.
"Thank you for inviting me to your party last week" may give the input "Thank you <extra_id_0> me to your party
<extra_id_1> week" and the target "<extra_id_0> for inviting <extra_id_1> last", both ended by the end token.

Shape letters: L tokens of one row, K hidden spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.seq2seq import VIEW, check_model, with_decoder
from tunecore.objectives.vocabulary import check_loss_options, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

NAME = "span_corruption"


@dataclass(frozen=True, kw_only=True)
class SpanCorruptionOptions:
    """Options of span_corruption."""

    noise_density: float = 0.15
    """Share of the tokens that are hidden."""
    mean_span_length: float = 3.0
    """Tokens of a hidden span, on average."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale in check."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ConfigError(f"{NAME}.noise_density is {self.noise_density}; it must be between 0 and 1")
        if not 1 <= self.mean_span_length < np.inf:
            raise ConfigError(f"{NAME}.mean_span_length is {self.mean_span_length}; it must be at least 1")
        check_loss_options(NAME, self.label_smoothing, self.z_loss)


class SpanCorruption:
    """The objective ``span_corruption``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "document"
    columns: tuple[str, ...] = ()
    view = VIEW
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: SpanCorruptionOptions) -> None:
        self.options = options

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the model has one stack, or its decoder does not start with the padding token.
        """
        check_model(NAME, model, family, "pad")
        return None

    def row_length(self, max_length: int) -> int:
        """The longest row, end token included, whose input and target fit ``max_length`` tokens each."""
        length = 1
        while max(self.lengths(length + 1)) <= max_length:
            length += 1
        return length + 1

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of input and target of a row of ``length`` tokens of text, end tokens included."""
        hidden, spans = self.counts(length)
        return length - hidden + spans + 1, hidden + spans + 1

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of ``length`` are hidden, and in how many spans; at least one is kept before each."""
        if length < 2:
            return 0, 0
        hidden = min(max(round(length * self.options.noise_density), 1), length - 1)
        spans = max(round(hidden / self.options.mean_span_length), 1)
        return hidden, min(spans, length - hidden)

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk with the special tokens of the family."""
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Hide spans of the tokens that are not special; a single token stays and asks for nothing.

        Raises:
            ConfigError: the tokenizer has no end token or too few sentinels, or another objective made a decoder's row.
        """
        special = example.columns.get("special")
        text = example.input_ids if special is None else example.input_ids[~special.astype(bool)]
        hidden, spans = self.counts(len(text))
        if corpus.eos_id is None:
            raise ConfigError(f"{NAME} needs an end token and the tokenizer has none", hint="Set its eos_token.")
        if spans > len(corpus.sentinel_ids):
            raise ConfigError(
                f"{NAME} hides {spans} spans of a row of {len(text)} tokens; "
                f"the tokenizer has {len(corpus.sentinel_ids)} sentinels <extra_id_0>, <extra_id_1> ...",
                hint="Use a tokenizer of T5, a longer mean_span_length, a lower noise_density or shorter rows.",
            )
        end = np.asarray([corpus.eos_id], dtype=np.int64)
        if spans == 0:
            return with_decoder(example, NAME, np.concatenate([text, end]), text[:0], corpus.pad_id)
        kept_lengths = _segments(len(text) - hidden, spans, stream)
        hidden_lengths = _segments(hidden, spans, stream)
        edges = np.cumsum(np.stack([kept_lengths, hidden_lengths], axis=1).ravel())
        pieces = np.split(text, edges[:-1])
        sentinels = [np.asarray([sentinel], dtype=np.int64) for sentinel in corpus.sentinel_ids[:spans]]
        inputs = [part for pair in zip(pieces[::2], sentinels, strict=True) for part in pair]
        target = [part for pair in zip(sentinels, pieces[1::2], strict=True) for part in pair]
        return with_decoder(
            example, NAME, np.concatenate([*inputs, end]), np.concatenate([*target, end]), corpus.pad_id
        )

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the target's tokens, summed, the end token included."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}


def _segments(length: int, count: int, stream: Stream) -> IntArray:
    """``length`` cut at random into ``count`` parts of at least 1, every way equally likely: int64 [K]."""
    cuts = np.sort(stream.permutation(length - 1)[: count - 1]) + 1
    return np.diff(cuts, prepend=0, append=length).astype(np.int64)
