"""Prefix language modelling: one model that reads both ways, from left to right, and sequence to sequence.

UniLM (Dong et al. 2019, arXiv:1905.03197). What an example's tokens may see is told by its prefix: all tokens see the
prefix, the rest is causal. The whole example is bidirectional, no token is left to right, the first of two segments
is sequence to sequence. The three are drawn row by row and lie in one batch. Under each mask hidden tokens are asked
for ("cloze"), one at a time and now and then two or three in a row. The paper's fourth kind of mask, right to left, is
not offered.

With ``prediction: next_token`` this is the prefix language model of Raffel et al. 2019 (arXiv:1910.10683): the row is
cut at a random place, and each token after the cut is predicted from those before it, on GPT-2 as on BERT.

Shape letters: L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.masking import (
    Chosen,
    MaskingOptions,
    Units,
    check_shares,
    choose_spans,
    free_positions,
    hide,
)
from tunecore.objectives.pairs import cut_at_sentence, part
from tunecore.objectives.vocabulary import vocabulary_loss
from tunecore.types import Chunk, CorpusView, Example, Family, Forward, LossSum, Progress, Stream, Targets

NAME = "prefix_lm"


@dataclass(frozen=True, kw_only=True)
class PrefixLMOptions(MaskingOptions):
    """Options of prefix_lm. Shares, rates and probabilities are those of ``prediction: cloze``."""

    owner: ClassVar[str] = NAME

    prediction: Literal["cloze", "next_token"] = "cloze"
    """cloze asks for hidden tokens under three kinds of masks, next_token for each token after a random cut."""
    bidirectional_share: float = 1 / 3
    """Share of rows in which every token sees every other."""
    left_to_right_share: float = 1 / 3
    """Share of rows in which each token sees those before it."""
    sequence_to_sequence_share: float = 1 / 3
    """Share of rows whose second part sees the first, and itself from left to right. Shares are relative."""
    ngram_probability: float = 0.2
    """How often two or three tokens in a row are hidden together instead of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in ("cloze", "next_token"):
            raise ConfigError(f"{NAME}.prediction is {self.prediction!r}; it must be cloze or next_token")
        check_shares(
            NAME, bidirectional_share=self.bidirectional_share, left_to_right_share=self.left_to_right_share,
            sequence_to_sequence_share=self.sequence_to_sequence_share,
        )  # fmt: skip
        if not 0 <= self.ngram_probability <= 1:
            raise ConfigError(f"{NAME}.ngram_probability is {self.ngram_probability}; it must be between 0 and 1")


class PrefixLM:
    """The objective ``prefix_lm``; its one loss has the same name."""

    name = NAME
    view = "prefix"
    losses: tuple[str, ...] = (NAME,)
    reads = ("targets",)
    uses: tuple[str, ...] = ("masked_lm", "causal_lm")

    def __init__(self, options: PrefixLMOptions) -> None:
        self.options = options
        cloze = options.prediction == "cloze"
        self.unit: Literal["document", "sentence", "pair"] = "pair" if cloze else "document"
        self.columns: tuple[str, ...] = ("sentence_starts",) if cloze else ()
        shares = np.asarray(
            [options.bidirectional_share, options.left_to_right_share, options.sequence_to_sequence_share]
        )
        self._kinds = np.cumsum(shares / shares.sum())
        n = options.ngram_probability
        self._span_lengths = [1 - n, n / 2, n / 2]

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head."""
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row with its prefix: of the drawn kind (cloze), or up to a random cut (next_token).

        Two segments are cut apart at a random sentence boundary; a chunk that cannot be cut is bidirectional.
        """
        chunk = corpus[row_id]
        if self.options.prediction == "next_token":
            example = corpus.add_special(chunk)
            cut = int(stream.integers(1, len(example), 1)[0]) if len(example) > 1 else 0
            return replace(example, prefix_len=cut)
        kind = int(np.searchsorted(self._kinds, stream.uniform(1)[0], side="right"))
        if kind == 1:
            return replace(corpus.add_special(chunk), prefix_len=0)
        if len(chunk.ids) < 2:
            example = corpus.add_special(chunk)
            return replace(example, prefix_len=len(example))
        cut = cut_at_sentence(chunk, stream)
        second = part(chunk, cut, len(chunk.ids))
        example = corpus.add_special(part(chunk, 0, cut), second)
        return replace(example, prefix_len=len(example) if kind == 0 else _start_of_second(example, second))

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Hide tokens of any part and ask for them (cloze), or ask for each token after the prefix (next_token).

        Raises:
            ConfigError: hidden tokens are asked for and the tokenizer has no mask token.
        """
        options = self.options
        if options.prediction == "next_token":
            return _with_next_tokens(example)
        if corpus.mask_id is None:
            raise ConfigError(
                f"{NAME} hides tokens, and the tokenizer has no mask token",
                hint=f"Set {NAME}.prediction: next_token for a decoder, or use a tokenizer with mask_token set.",
            )
        free = free_positions(example)
        spans = choose_spans(Units.of_tokens(free), options.budget(free, progress), self._span_lengths, stream)
        return hide(example, NAME, Chosen.one_by_one(Chosen.together(spans).positions), corpus, stream, options)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the tokens asked for, summed; the prediction head runs at their rows only."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}


def _start_of_second(example: Example, second: Chunk) -> int:
    """The position of the second segment's first token: special tokens between belong to the first."""
    special = example.columns["special"].astype(bool)
    behind = int(np.argmin(special[::-1]))
    return len(example) - behind - len(second.ids)


def _with_next_tokens(example: Example) -> Example:
    """The example with the token after each position from the prefix's last on as its target; the inputs stay."""
    start = example.prefix_len or 0
    if len(example) < 2 or start == 0:
        return example
    index = np.arange(start - 1, len(example) - 1, dtype=np.int64)
    targets = Targets(index, example.input_ids[start:].astype(np.int64))
    return replace(example, targets={**example.targets, NAME: targets})
