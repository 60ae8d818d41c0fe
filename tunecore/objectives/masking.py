"""What objectives that hide tokens share: which positions are free, how many are chosen, in which units, and what
stands in their place.

Shape letters: L tokens of one example, N free positions, U units (tokens, words or phrases) of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.errors import ConfigError
from tunecore.objectives.vocabulary import check_loss_options, random_ids
from tunecore.types import CorpusView, Example, IntArray, Progress, Stream, Targets


@dataclass(frozen=True, kw_only=True)
class MaskingOptions:
    """Options of every objective that hides tokens and asks for them."""

    owner: ClassVar[str] = "masking"
    """Name of the objective, for error messages."""

    mask_rate: float = 0.15
    """Share of the ordinary tokens that are chosen."""
    mask_rate_end: float | None = None
    """Rate at the last step; the rate moves there linearly over the run. None keeps ``mask_rate``."""
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
                raise ConfigError(f"{self.owner}.{name} is {rate}; it must be above 0 and at most 1")
        parts = (self.mask_probability, self.random_probability)
        if not min(parts) >= 0 or not sum(parts) <= 1 + 1e-9:
            raise ConfigError(
                f"{self.owner}.mask_probability and {self.owner}.random_probability are {parts[0]} and {parts[1]}; "
                "neither may be negative and their sum must be at most 1"
            )
        check_loss_options(self.owner, self.label_smoothing, self.z_loss)

    def rate(self, progress: Progress) -> float:
        """The share of tokens to choose at this point of the run."""
        start, end = self.mask_rate, self.mask_rate_end
        if end is None:
            return start
        return start + (end - start) * min(1.0, progress.step / max(progress.total_steps - 1, 1))

    def budget(self, free: IntArray, progress: Progress) -> int:
        """How many of the free positions to choose: the rate's share, and one at least."""
        return max(1, round(self.rate(progress) * len(free)))


def check_shares(owner: str, **shares: float) -> None:
    """Raise ConfigError unless all shares are finite and not negative, and one is above 0."""
    if not all(0 <= share < np.inf for share in shares.values()) or not sum(shares.values()) > 0:
        listed = ", ".join(f"{name} {share}" for name, share in shares.items())
        raise ConfigError(f"{owner}: the shares are {listed}; none may be negative and one must be above 0")


class Chosen(NamedTuple):
    """The positions one objective asks for, and the stretches of them that are replaced in one way."""

    positions: IntArray
    """int64 [n], in any order."""
    lengths: IntArray
    """int64 [stretches], of sum n: how many consecutive entries of ``positions`` are replaced together."""

    @classmethod
    def one_by_one(cls, positions: IntArray) -> Chosen:
        """Each position is replaced by itself."""
        return cls(positions, np.ones(len(positions), dtype=np.int64))

    @classmethod
    def together(cls, stretches: Sequence[IntArray]) -> Chosen:
        """Each stretch is replaced in one way."""
        positions = np.concatenate(stretches) if stretches else np.empty(0, dtype=np.int64)
        return cls(positions, np.fromiter((len(s) for s in stretches), dtype=np.int64, count=len(stretches)))


class Units(NamedTuple):
    """Stretches of free positions that are chosen whole, in order: unit u is
    ``positions[first[u] : first[u] + lengths[u]]``.
    """

    positions: IntArray
    """int64 [N], ascending."""
    first: IntArray
    """int64 [U]."""
    lengths: IntArray
    """int64 [U]."""

    @classmethod
    def of_tokens(cls, positions: IntArray) -> Units:
        """Every position by itself."""
        return cls(positions, np.arange(len(positions)), np.ones(len(positions), dtype=np.int64))

    @classmethod
    def beginning_at(cls, positions: IntArray, begins: NDArray[np.bool_]) -> Units:
        """Units that begin where ``begins`` [N] says, and wherever the positions have a gap."""
        first = np.flatnonzero(begins | (np.diff(positions, prepend=-2) > 1))
        return cls(positions, first, np.diff(first, append=len(positions)))

    @classmethod
    def of_words(cls, example: Example, positions: IntArray) -> Units:
        """Whole words by the column ``word_starts``; a stretch after a gap begins a word even where a chunk was cut
        inside one.
        """
        return cls.beginning_at(positions, example.columns["word_starts"].astype(bool)[positions])

    def __getitem__(self, unit: int) -> IntArray:  # type: ignore[override]
        start = self.first[unit]
        return self.positions[start : start + self.lengths[unit]]

    def follows(self) -> NDArray[np.bool_]:
        """Whether each unit [U] stands right after the one before it (the first does not)."""
        begin = self.positions[self.first]
        end = self.positions[self.first + self.lengths - 1]
        return np.append(False, begin[1:] == end[:-1] + 1) if len(begin) else np.empty(0, dtype=bool)


def free_positions(example: Example) -> IntArray:
    """Positions that are neither special nor asked for by another objective: int64, ascending."""
    free = np.ones(len(example), dtype=bool)
    if "special" in example.columns:
        free &= ~example.columns["special"].astype(bool)
    for targets in example.targets.values():
        if targets.level == "token":
            free[targets.index] = False
    return np.flatnonzero(free).astype(np.int64)


def choose_units(units: Units, budget: int, stream: Stream) -> list[IntArray]:
    """Units in random order, as long as they fit into ``budget`` tokens; a first one that is longer is taken too."""
    left = budget
    lengths = units.lengths.tolist()
    taken: list[IntArray] = []
    for unit in stream.permutation(len(lengths)).tolist():
        if lengths[unit] <= left or not taken:
            taken.append(units[unit])
            left -= lengths[unit]
        if left <= 0:
            break
    return taken


def choose_spans(units: Units, budget: int, lengths: Sequence[float], stream: Stream) -> list[IntArray]:
    """Spans of consecutive units until ``budget`` tokens are chosen.

    Each span begins at a random unit that is not yet chosen and goes on to the right for as many units as were drawn
    for it, up to a gap, a chosen unit or the end of the budget. A first unit longer than the budget is taken all the
    same.

    Args:
        units: what spans are made of.
        budget: most tokens.
        lengths: probability of a span of 1, 2, ... units.
        stream: source of the draws.
    """
    count = len(units.first)
    drawn = (np.searchsorted(np.cumsum(lengths), stream.uniform(count) * sum(lengths), side="right") + 1).tolist()
    sizes, first = units.lengths.tolist(), units.first.tolist()
    follows = units.follows().tolist()
    chosen = [False] * count
    left = budget
    spans: list[IntArray] = []
    for begin in stream.permutation(count).tolist():
        end = begin
        while end < count and end - begin < drawn[begin] and not chosen[end] and (end == begin or follows[end]):
            if sizes[end] > left and (spans or end > begin):
                break
            left -= sizes[end]
            chosen[end] = True
            end += 1
        if end > begin:
            spans.append(units.positions[first[begin] : first[end - 1] + sizes[end - 1]])
        if left <= 0:
            break
    return spans


def geometric_lengths(p: float, longest: int) -> list[float]:
    """Probabilities of 1, ..., ``longest`` under a geometric distribution cut off there and rescaled."""
    raw = [p * (1 - p) ** n for n in range(longest)]
    return [x / sum(raw) for x in raw]


def hide(
    example: Example, name: str, chosen: Chosen, corpus: CorpusView, stream: Stream, options: MaskingOptions
) -> Example:
    """Replace the chosen tokens and make them the targets ``name``; with none chosen, the example as it is.

    One draw a stretch decides whether it becomes mask tokens, random ordinary tokens, or stays.

    Raises:
        ConfigError: the tokenizer has no mask token.
    """
    if corpus.mask_id is None:
        raise ConfigError(
            f"{name} needs a mask token and the tokenizer has none", hint="Use a tokenizer with mask_token set."
        )
    if len(chosen.positions) == 0:
        return example
    kind = np.repeat(stream.uniform(len(chosen.lengths)), chosen.lengths)
    order = np.argsort(chosen.positions)
    index, kind = chosen.positions[order], kind[order]
    originals = example.input_ids[index].astype(np.int64)
    drawn = random_ids(corpus, stream, len(index))
    masked = kind < options.mask_probability
    randomised = ~masked & (kind < options.mask_probability + options.random_probability)
    input_ids = example.input_ids.copy()
    input_ids[index] = np.where(masked, corpus.mask_id, np.where(randomised, drawn, originals))
    return replace(example, input_ids=input_ids, targets={**example.targets, name: Targets(index, originals)})
