"""Masking of whole phrases: words, phrases and names are hidden whole and predicted from both sides.

ERNIE 1.0 (Sun et al. 2019, arXiv:1904.09223), whose three levels of masking are used at once: basic (words),
phrases, and entities (names). Phrases come from a list, from the statistics of the corpus, or both
(:mod:`tunecore.data.phrases`); entities from a list. A draw picks the level by its share, then a random unit of that
level; a unit is replaced in one way, by mask tokens, random tokens or nothing.

Shape letters: L tokens of one example, U units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunecore.data.phrases import PhraseOptions
from tunecore.errors import DataError
from tunecore.objectives.masking import Chosen, MaskingOptions, Units, check_shares, free_positions, hide
from tunecore.objectives.vocabulary import refuse_causal, vocabulary_loss
from tunecore.types import CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

NAME = "phrase_masked_lm"
BASIC, PHRASE, ENTITY = 0, 1, 2
_COLUMNS = ("word_starts", "phrase_starts", "phrase_members", "entity_starts", "entity_members")


@dataclass(frozen=True, kw_only=True)
class PhraseMaskedLMOptions(MaskingOptions):
    """Options of phrase_masked_lm."""

    owner: ClassVar[str] = NAME

    phrases: str | None = None
    """File of phrases, one a line, found in the text longest first."""
    entities: str | None = None
    """File of names (people, places, organisations ...), one a line, found in the text longest first."""
    collocations: bool = True
    """Find phrases in the statistics of the corpus too: neighbouring words that stand together more than by chance."""
    min_count: int = 10
    """Times two neighbours must stand side by side to be a phrase."""
    min_npmi: float = 0.4
    """Normalised pointwise mutual information they must have: 0 is chance, 1 is never apart."""
    basic_share: float = 1.0
    """Share of the draws that pick a word. Shares are relative; words also fill up what the others leave."""
    phrase_share: float = 1.0
    """Share of the draws that pick a phrase; with 0 phrases are words like others."""
    entity_share: float = 1.0
    """Share of the draws that pick an entity; with 0 entities are words like others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(
            NAME, basic_share=self.basic_share, phrase_share=self.phrase_share, entity_share=self.entity_share
        )
        self.sources()

    def sources(self) -> PhraseOptions:
        """Where phrases come from."""
        return PhraseOptions(
            phrases=self.phrases, entities=self.entities, collocations=self.collocations, min_count=self.min_count,
            min_npmi=self.min_npmi,
        )  # fmt: skip


class PhraseMaskedLM:
    """The objective ``phrase_masked_lm``; its one loss has the same name."""

    name = NAME
    unit: Literal["document", "sentence", "pair"] = "document"
    columns: tuple[str, ...] = ("word_starts",)
    view = "encoder"
    losses: tuple[str, ...] = (NAME,)
    reads = ("targets",)
    uses: tuple[str, ...] = ("masked_lm",)

    def __init__(self, options: PhraseMaskedLMOptions) -> None:
        self.options = options
        self.phrase_options = options.sources()
        """Asks for the columns of :mod:`tunecore.data.phrase_columns`."""
        self._shares = np.array([options.basic_share, options.phrase_share, options.entity_share])

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

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Choose whole units of at most max(1, round(rate * free)) tokens together and replace them.

        A first unit longer than that is taken all the same. An example without a free token is returned as it is.

        Raises:
            ConfigError: the tokenizer has no mask token.
            DataError: the corpus has no columns of phrases.
        """
        free = free_positions(example)
        units, levels = self._units(example, free)
        chosen = self._choose(units, levels, self.options.budget(free, progress), stream)
        return hide(example, NAME, Chosen.together(chosen), corpus, stream, self.options)

    def _units(self, example: Example, free: IntArray) -> tuple[Units, IntArray]:
        """The free tokens in words, phrases and entities, and the level [U] of each."""
        columns = {name: example.columns.get(name) for name in _COLUMNS}
        missing = [name for name, column in columns.items() if column is None]
        if missing:
            raise DataError(
                f"{NAME} needs the column {missing[0]}, and the corpus was made without it",
                hint="Make it with tunecore.data.phrase_columns.with_phrases, as the engine does.",
            )
        starts, phrase_starts, phrases, entity_starts, entities = (
            np.asarray(column, dtype=bool) for column in columns.values()
        )
        entities = entities & (self._shares[ENTITY] > 0)
        phrases = _apart(phrase_starts, phrases, entities) & (self._shares[PHRASE] > 0)
        starts = np.where(entities, entity_starts, np.where(phrases, phrase_starts, starts))
        level = np.where(entities, ENTITY, np.where(phrases, PHRASE, BASIC))
        starts |= np.diff(level, prepend=-1) != 0
        units = Units.beginning_at(free, starts[free])
        return units, level[free[units.first]]

    def _choose(self, units: Units, levels: IntArray, budget: int, stream: Stream) -> list[IntArray]:
        """Units drawn level by level as long as they fit into ``budget`` tokens."""
        order = stream.permutation(len(levels))
        waiting = [order[levels[order] == level][::-1].tolist() for level in (BASIC, PHRASE, ENTITY)]
        left = budget
        taken: list[IntArray] = []
        for draw in stream.uniform(len(levels)):
            if left <= 0:
                break
            unit = waiting[self._level(waiting, draw)].pop()
            length = int(units.lengths[unit])
            if length <= left or not taken:
                taken.append(units[unit])
                left -= length
        return taken

    def _level(self, waiting: list[list[int]], draw: float) -> int:
        """The level a draw from [0, 1) picks among those with units left; words where none of them has a share."""
        shares = np.where([bool(units) for units in waiting], self._shares, 0.0)
        if shares.sum() <= 0:
            return BASIC
        return min(int(np.searchsorted(np.cumsum(shares), draw * shares.sum(), side="right")), ENTITY)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the chosen tokens, summed; the prediction head runs at their rows only."""
        options = self.options
        total = vocabulary_loss(forward, NAME, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        return {NAME: total}


def _apart(starts: NDArray[np.bool_], members: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``members`` without the phrases that share a token with ``others``."""
    begins = members & (starts | ~np.append(False, members[:-1]))
    number = np.cumsum(begins)
    touched = np.zeros(len(members) + 1, dtype=bool)
    touched[number[members & others]] = True
    return members & ~touched[number]
