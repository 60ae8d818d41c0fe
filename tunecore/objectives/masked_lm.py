"""Masked language modelling: hide some tokens and predict them from both sides.

BERT (Devlin et al. 2018, arXiv:1810.04805): 15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a
random token, 10 % stay. Masks are drawn anew at every visit of a row, as in RoBERTa (Liu et al. 2019,
arXiv:1907.11692). ``whole_word`` chooses whole words (BERT's release of May 2019). ``mask_rate_end`` moves the rate
over the run: Wettig et al. 2022 (arXiv:2202.08005) found 40 % better than 15 % for larger models, and Ankner et al.
2023 (arXiv:2305.15096) a falling rate better than any fixed one.

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
from tunecore.objectives.vocabulary import check_loss_options, random_ids, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream, Targets

NAME = "masked_lm"


@dataclass(frozen=True, kw_only=True)
class MaskedLMOptions:
    """Options of masked_lm."""

    mask_rate: float = 0.15
    """Share of the ordinary tokens that are chosen."""
    mask_rate_end: float | None = None
    """Rate at the last step; the rate moves there linearly over the run. None keeps ``mask_rate``."""
    whole_word: bool = False
    """Choose whole words, not word pieces."""
    mask_probability: float = 0.8
    """Share of the chosen tokens replaced by the mask token."""
    random_probability: float = 0.1
    """Share of the chosen tokens replaced by a random ordinary token; the rest stays as it is."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale in check."""

    def __post_init__(self) -> None:
        for name, rate in (("mask_rate", self.mask_rate), ("mask_rate_end", self.mask_rate_end)):
            if rate is not None and not 0 < rate <= 1:
                raise ConfigError(f"{NAME}.{name} is {rate}; it must be above 0 and at most 1")
        parts = (self.mask_probability, self.random_probability)
        if min(parts) < 0 or sum(parts) > 1 + 1e-9:
            raise ConfigError(
                f"{NAME}.mask_probability and {NAME}.random_probability are {parts[0]} and {parts[1]}; "
                "neither may be negative and their sum must be at most 1"
            )
        check_loss_options(NAME, self.label_smoothing, self.z_loss)


class MaskedLM:
    """The objective ``masked_lm``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "document"
    view = "encoder"
    losses: tuple[str, ...] = (NAME,)
    reads = ("targets",)

    def __init__(self, options: MaskedLMOptions) -> None:
        self.options = options
        self.columns: tuple[str, ...] = ("word_starts",) if options.whole_word else ()

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        if family.causal:
            raise ConfigError(
                f"{NAME} needs a model that reads both ways; {family.model_type} is causal",
                hint="Use the objective causal_lm, or a family such as bert or roberta.",
            )
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk between its special tokens."""
        return corpus.add_special(corpus[row_id])

    def mask_rate(self, progress: Progress) -> float:
        """The share of tokens to choose at this point of the run."""
        start, end = self.options.mask_rate, self.options.mask_rate_end
        if end is None:
            return start
        return start + (end - start) * min(1.0, progress.step / max(progress.total_steps - 1, 1))

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Choose max(1, round(rate * candidates)) of the tokens that are not special and replace them.

        With ``whole_word``, words are taken in random order as long as they fit into that number; a first word
        longer than the number is taken all the same. An example of special tokens alone is returned as it is.

        Raises:
            ConfigError: the tokenizer has no mask token.
        """
        if corpus.mask_id is None:
            raise ConfigError(
                f"{NAME} needs a mask token and the tokenizer has none", hint="Use a tokenizer with mask_token set."
            )
        candidates = _candidates(example)
        if len(candidates) == 0:
            return example
        budget = max(1, round(self.mask_rate(progress) * len(candidates)))
        if self.options.whole_word:
            chosen = _choose_words(example, candidates, budget, stream)
        else:
            chosen = candidates[stream.permutation(len(candidates))[:budget]]
        chosen = np.sort(chosen)
        targets = Targets(chosen, example.input_ids[chosen].astype(np.int64))
        input_ids = example.input_ids.copy()
        input_ids[chosen] = self._replacements(input_ids[chosen], corpus, corpus.mask_id, stream)
        return replace(example, input_ids=input_ids, targets={**example.targets, NAME: targets})

    def _replacements(self, ids: IntArray, corpus: CorpusView, mask_id: int, stream: Stream) -> IntArray:
        kind = stream.uniform(len(ids))
        drawn = random_ids(corpus, stream, len(ids))
        masked = kind < self.options.mask_probability
        randomised = ~masked & (kind < self.options.mask_probability + self.options.random_probability)
        return np.where(masked, mask_id, np.where(randomised, drawn, ids)).astype(np.int64)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the chosen tokens, summed; the prediction head runs at their rows only."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}


def _candidates(example: Example) -> IntArray:
    """Positions that are not special: int64, ascending."""
    special = example.columns.get("special")
    if special is None:
        return np.arange(len(example), dtype=np.int64)
    return np.flatnonzero(~special.astype(bool)).astype(np.int64)


def _choose_words(example: Example, candidates: IntArray, budget: int, stream: Stream) -> IntArray:
    """Positions of randomly chosen whole words, at most ``budget`` of them unless the first word is longer."""
    # A stretch after a special token begins a word even where the chunk was cut inside one.
    begins = example.columns["word_starts"].astype(bool)[candidates] | (np.diff(candidates, prepend=-2) > 1)
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=len(candidates))
    left = budget
    taken: list[IntArray] = []
    for word in stream.permutation(len(first)):
        length = int(lengths[word])
        if length <= left or not taken:
            taken.append(candidates[first[word] : first[word] + length])
            left -= length
        if left <= 0:
            break
    return np.concatenate(taken)
