"""Denoising: the encoder reads a damaged text, the decoder writes the whole one.

BART (Lewis et al. 2019, arXiv:1910.13461) does both of these: the sentences are shuffled, and 30 % of the tokens are
hidden in spans whose lengths are Poisson(3). Each span gives way to one mask token; a span of length 0 puts one between
two tokens. So the number of masks does not tell how many tokens are missing.

Shape letters: L tokens of one row, K spans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.seq2seq import VIEW, check_model, with_decoder
from tunecore.objectives.vocabulary import check_loss_options, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

NAME = "denoising"
_TAIL = 1e-12
"""Probability beyond which a Poisson length is not followed."""


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Options of denoising."""

    mask_rate: float = 0.3
    """Share of the tokens that are hidden; 0 for none."""
    poisson_lambda: float = 3.0
    """Mean length of a hidden span; lengths are Poisson, 0 included."""
    whole_word: bool = False
    """Count and hide words, not word pieces."""
    permute_sentences: float = 1.0
    """Share of the sentences that change places; 0 for none."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale in check."""

    def __post_init__(self) -> None:
        for name, rate in (("mask_rate", self.mask_rate), ("permute_sentences", self.permute_sentences)):
            if not 0 <= rate <= 1:
                raise ConfigError(f"{NAME}.{name} is {rate}; it must be at least 0 and at most 1")
        if self.mask_rate == 0 and self.permute_sentences == 0:
            raise ConfigError(f"{NAME}.mask_rate and {NAME}.permute_sentences are both 0; nothing is damaged")
        if not 1 <= self.poisson_lambda <= 100:
            raise ConfigError(f"{NAME}.poisson_lambda is {self.poisson_lambda}; it must be from 1 to 100")
        check_loss_options(NAME, self.label_smoothing, self.z_loss)


class Denoising:
    """The objective ``denoising``; its one loss has the same name."""

    name = NAME
    view = VIEW
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: DenoisingOptions) -> None:
        self.options = options
        shuffles = options.permute_sentences > 0
        self.unit: Literal["document", "sentence", "pair"] = "sentence" if shuffles else "document"
        wanted = (("sentence_starts", shuffles), ("word_starts", options.whole_word))
        self.columns: tuple[str, ...] = tuple(name for name, is_wanted in wanted if is_wanted)
        self._cumulative = _poisson(options.poisson_lambda)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the model has one stack, or its decoder does not start with the end token.
        """
        check_model(NAME, model, family, "eos")
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk between its special tokens."""
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Shuffle the sentences, then hide spans; special tokens stay. The whole row as it was is the target.

        Raises:
            ConfigError: the tokenizer has no mask or end token, or another objective made a decoder's row.
        """
        if corpus.mask_id is None or corpus.eos_id is None:
            what = "a mask token" if corpus.mask_id is None else "an end token"
            raise ConfigError(f"{NAME} needs {what} and the tokenizer has none", hint="Use a tokenizer of BART.")
        special = example.columns.get("special")
        places = np.arange(len(example)) if special is None else np.flatnonzero(~special.astype(bool))
        begin, stop = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        order = np.arange(begin, stop)
        if self.options.permute_sentences > 0:
            order = order[self._shuffled(example.columns["sentence_starts"][begin:stop], stream.child("sentences"))]
        text, starts = example.input_ids[order], np.ones(len(order), dtype=bool)
        if self.options.whole_word:
            # Where two sentences meet by the shuffle a word begins, even if one was cut inside a word.
            starts = example.columns["word_starts"][order].astype(bool) | (np.diff(order, prepend=-2) != 1)
        room = corpus.max_length - len(example) + len(text)
        text = self._infilled(text, starts, room, corpus.mask_id, stream.child("spans"))
        damaged = np.concatenate([example.input_ids[:begin], text, example.input_ids[stop:]])
        return with_decoder(example, NAME, damaged, example.input_ids.astype(np.int64), corpus.eos_id)

    def _shuffled(self, starts: NDArray[np.bool_], stream: Stream) -> IntArray:
        """Places of the tokens when that share of the sentences has changed places among themselves."""
        sentences = np.split(np.arange(len(starts)), np.flatnonzero(starts[1:]) + 1)
        moved = math.ceil(len(sentences) * self.options.permute_sentences)
        chosen = stream.permutation(len(sentences))[:moved]
        order = np.arange(len(sentences))
        order[chosen] = chosen[stream.permutation(moved)]
        return np.concatenate([sentences[i] for i in order])

    def _infilled(self, text: IntArray, starts: NDArray[np.bool_], room: int, mask_id: int, stream: Stream) -> IntArray:
        """``text`` [L] with a mask in place of spans of the units that ``starts`` begins; at most ``room`` tokens."""
        if self.options.mask_rate == 0 or len(text) == 0:
            return text
        unit_of = np.cumsum(starts) - starts[0]  # the first token begins a unit in any case
        units = int(unit_of[-1]) + 1
        lengths = self._span_lengths(max(round(self.options.mask_rate * units), 1), stream)
        kept = units - int(lengths.sum())
        # Spans of length 0 make a text longer; those that a full row has no room for are left out.
        empty = lengths == 0
        spare = room - (len(text) - int(lengths.sum())) - int((~empty).sum())
        lengths = lengths[~empty | (np.cumsum(empty) <= spare)]
        # The units that stay and the spans in one line: every order that keeps the units' own is equally likely.
        is_span = np.zeros(kept + len(lengths), dtype=bool)
        is_span[stream.permutation(len(is_span))[: len(lengths)]] = True
        consumed = np.ones(len(is_span), dtype=np.int64)
        consumed[is_span] = lengths
        slot_of_unit = np.full(units, -1, dtype=np.int64)
        slot_of_unit[(np.cumsum(consumed) - consumed)[~is_span]] = np.flatnonzero(~is_span)
        slots = slot_of_unit[unit_of]
        stays = slots >= 0
        values = np.concatenate([text[stays], np.full(len(lengths), mask_id, dtype=np.int64)])
        return values[np.argsort(np.concatenate([slots[stays], np.flatnonzero(is_span)]), kind="stable")]

    def _span_lengths(self, hidden: int, stream: Stream) -> IntArray:
        """Poisson lengths, int64 [K], drawn until they sum to ``hidden``; the last is cut to fit."""
        lengths = np.empty(0, dtype=np.int64)
        while lengths.sum() < hidden:
            lengths = np.concatenate([lengths, np.searchsorted(self._cumulative, stream.uniform(hidden), side="right")])
        sums = np.cumsum(lengths)
        count = int(np.searchsorted(sums, hidden)) + 1
        lengths = lengths[:count].astype(np.int64)
        lengths[-1] -= sums[count - 1] - hidden
        return lengths

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of every token of the whole text, summed."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}


def _poisson(mean: float) -> NDArray[np.float64]:
    """P(length <= k) for k = 0, 1, ... up to a negligible tail."""
    cumulative, probability = [0.0], math.exp(-mean)
    while cumulative[-1] < 1 - _TAIL and probability > 0:
        cumulative.append(cumulative[-1] + probability)
        probability *= mean / len(cumulative[1:])
    return np.asarray(cumulative[1:-1])
