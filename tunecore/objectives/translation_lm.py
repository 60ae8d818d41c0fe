"""Translation language modelling: masked language modelling over a text and its translation, read together.

XLM (Lample and Conneau 2019, arXiv:1901.07291). A row is a pair of texts, laid out as the tokenizer lays out two;
tokens are masked in both, so that a masked word can be read off the other language. Positions of the second text
start again, at those it would have alone, so that aligned words have like positions; each text has a language id.

Shape letters: L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.data.text_pairs import SECOND_STARTS, split_texts
from tunecore.errors import ConfigError
from tunecore.objectives import masked_lm
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.vocabulary import vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

NAME = "translation_lm"
Side = Literal["both", "first", "second"]


@dataclass(frozen=True, kw_only=True)
class TranslationLMOptions:
    """Options of translation_lm."""

    mask_rate: float = 0.15
    """Share of the ordinary tokens that are chosen; of these 80 % are masked, 10 % random, 10 % kept."""
    whole_word: bool = False
    """Choose whole words, not word pieces."""
    restart_positions: bool = True
    """Count the positions of the second text from its own beginning."""
    language_ids: bool = True
    """Segment 0 for the first language and 1 for the second, in families that have segments; False is 0 for all."""
    texts: Side = "both"
    """Which texts are shown; "first" or "second" is that text alone, its language id and positions unchanged."""
    masked: Side = "both"
    """Which of the shown texts tokens are masked in."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= 1:
            raise ConfigError(f"{NAME}.mask_rate is {self.mask_rate}; it must be above 0 and at most 1")
        for name, side in (("texts", self.texts), ("masked", self.masked)):
            if side not in ("both", "first", "second"):
                raise ConfigError(f"{NAME}.{name} is {side!r}; it must be both, first or second")
        if "both" not in (self.texts, self.masked) and self.texts != self.masked:
            raise ConfigError(f"{NAME}.masked is {self.masked!r}, but {NAME}.texts shows the {self.texts} text only")


class TranslationLM:
    """The objective ``translation_lm``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair", "text_pair"] = "text_pair"
    view = NAME
    losses: tuple[str, ...] = (NAME,)
    uses: tuple[str, ...] = ("masked_lm",)
    reads = ("targets",)

    def __init__(self, options: TranslationLMOptions) -> None:
        self.options = options
        self._masking = MaskedLM(MaskedLMOptions(mask_rate=options.mask_rate, whole_word=options.whole_word))
        self.columns: tuple[str, ...] = (SECOND_STARTS, *self._masking.columns)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        if family.causal:
            raise ConfigError(
                f"{NAME} needs a model that reads both ways; {family.model_type} is causal",
                hint="Use a family such as bert or roberta.",
            )
        return None

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The shown texts of the row with their special tokens, positions and language ids."""
        first, second = split_texts(corpus[row_id])
        if self.options.texts != "both":
            example = corpus.add_special(first if self.options.texts == "first" else second)
            language = np.full(len(example), int(self.options.texts == "second"), dtype=np.int64)
            return replace(example, token_type_ids=language if self.options.language_ids else None)
        example = corpus.add_special(first, second)
        language = _sides(example)
        positions = np.arange(len(example), dtype=np.int64)
        if self.options.restart_positions:
            begin = int(np.flatnonzero(~example.columns["special"].astype(bool))[0])
            positions[language == 1] = begin + np.arange(int(language.sum()))
        return replace(
            example, position_ids=positions, token_type_ids=language if self.options.language_ids else None
        )

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Mask as masked_lm does, in the texts that are to be masked.

        Raises:
            ConfigError: the tokenizer has no mask token.
        """
        special = example.columns["special"].astype(bool)
        if self.options.texts == "both" and self.options.masked != "both":
            special = special | (_sides(example) != int(self.options.masked == "second"))
        hidden = replace(example, targets={}, columns={**example.columns, "special": special})
        made = self._masking.corrupt(hidden, corpus, stream, progress)
        targets = {NAME: made.targets[masked_lm.NAME]} if made.targets else {}
        return replace(example, input_ids=made.input_ids, targets={**example.targets, **targets})

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the masked tokens, summed; the prediction head runs at their rows only."""
        return {NAME: vocabulary_loss(forward, NAME, label_smoothing=0.0, z_loss=0.0)}


def _sides(example: Example) -> IntArray:
    """0 up to the second text, 1 from its first token on: int64 [L]."""
    return np.cumsum(example.columns[SECOND_STARTS].astype(np.int64))
