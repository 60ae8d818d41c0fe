"""Masked language modelling: hide some tokens and predict them from both sides.

BERT (Devlin et al. 2018, arXiv:1810.04805): 15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a
random token, 10 % stay. Masks are drawn anew at every visit of a row, as in RoBERTa (Liu et al. 2019,
arXiv:1907.11692). ``whole_word`` chooses whole words (BERT's release of May 2019). ``span`` chooses stretches of whole
words whose number is geometric, and replaces each stretch in one way (SpanBERT, Joshi et al. 2019, arXiv:1907.10529).
``mask_rate_end`` moves the rate over the run: Wettig et al. 2022 (arXiv:2202.08005) found 40 % better than 15 % for
larger models, and Ankner et al. 2023 (arXiv:2305.15096) a falling rate better than any fixed one.

Shape letters: L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.masking import (
    Chosen,
    MaskingOptions,
    Units,
    choose_spans,
    choose_units,
    free_positions,
    geometric_lengths,
    hide,
)
from tunecore.objectives.vocabulary import refuse_causal, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

NAME = "masked_lm"


@dataclass(frozen=True, kw_only=True)
class MaskedLMOptions(MaskingOptions):
    """Options of masked_lm."""

    owner: ClassVar[str] = NAME

    whole_word: bool = False
    """Choose whole words, not word pieces."""
    span: bool = False
    """Choose stretches of whole words (SpanBERT); each becomes mask tokens, random tokens, or stays as one."""
    span_stop_probability: float = 0.2
    """Probability that a stretch ends after each of its words: 0.2 gives 3.8 words on average (with ``span``)."""
    span_max_words: int = 10
    """Most words of a stretch (with ``span``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.span_stop_probability <= 1:
            raise ConfigError(
                f"{NAME}.span_stop_probability is {self.span_stop_probability}; it must be above 0 and at most 1"
            )
        if self.span_max_words < 1:
            raise ConfigError(f"{NAME}.span_max_words is {self.span_max_words}; it must be at least 1")
        if self.span and self.whole_word:
            raise ConfigError(f"{NAME}.span and {NAME}.whole_word are both set; spans are of whole words by themselves")


class MaskedLM:
    """The objective ``masked_lm``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "document"
    view = "encoder"
    losses: tuple[str, ...] = (NAME,)
    reads = ("targets",)

    def __init__(self, options: MaskedLMOptions) -> None:
        self.options = options
        self.columns: tuple[str, ...] = ("word_starts",) if options.whole_word or options.span else ()
        self._span_lengths = geometric_lengths(options.span_stop_probability, options.span_max_words)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        refuse_causal(NAME, family)
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk between its special tokens."""
        return corpus.add_special(corpus[row_id])

    def mask_rate(self, progress: Progress) -> float:
        """The share of tokens to choose at this point of the run."""
        return self.options.rate(progress)

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Choose max(1, round(rate * free)) of the tokens that are free (neither special nor the target of another
        objective) and replace them.

        With ``whole_word`` or ``span``, words are taken as long as they fit into that number; a first word longer
        than the number is taken all the same. An example without a free token is returned as it is.

        Raises:
            ConfigError: the tokenizer has no mask token.
        """
        free = free_positions(example)
        chosen = self._choose(example, free, self.options.budget(free, progress), stream)
        return hide(example, NAME, chosen, corpus, stream, self.options)

    def _choose(self, example: Example, free: IntArray, budget: int, stream: Stream) -> Chosen:
        if self.options.span:
            return Chosen.together(choose_spans(Units.of_words(example, free), budget, self._span_lengths, stream))
        if not self.options.whole_word:
            return Chosen.one_by_one(free[stream.permutation(len(free))[:budget]])
        # BERT decides for each piece of a chosen word by itself.
        words = choose_units(Units.of_words(example, free), budget, stream)
        return Chosen.one_by_one(Chosen.together(words).positions)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the chosen tokens, summed; the prediction head runs at their rows only."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}
