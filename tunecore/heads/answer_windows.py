"""How a question and its context lie in examples, and the answers that are found in them again.

Shape letters: L tokens of one example, P pieces of a context, D most pieces of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.data.pieces import PieceEncoder, Pieces, offset_of_second
from tunecore.data.windows import Window, cut_windows
from tunecore.types import IntArray

Logits = NDArray[np.float64]
_KEPT = 64
"""Contexts whose pieces are kept: many questions are asked about one."""


class QuestionLayout(NamedTuple):
    """A question and the windows of its context."""

    question: IntArray
    """Its pieces, as far as they are used."""
    context: Pieces
    windows: list[Window]
    offset: int
    """Tokens of an example before its piece of the context."""

    def pieces_of(self, place: tuple[int, int]) -> tuple[int, int] | None:
        """First and last piece of the context that touch the characters ``place``; None where none does."""
        pieces = self.context
        inside = (pieces.starts < place[1]) & (pieces.stops > place[0]) & (pieces.stops > pieces.starts)
        touched = np.flatnonzero(inside)
        return (int(touched[0]), int(touched[-1])) if len(touched) else None

    def positions(self, pieces: tuple[int, int], number: int) -> tuple[int, int]:
        """Where the first and last piece of an answer stand in the example of a window.

        (0, 0), the first token of all, where the window does not hold both: the window has no answer.
        """
        first, stop = self.windows[number]
        if pieces[0] < first or pieces[1] >= stop:
            return 0, 0
        return self.offset + pieces[0] - first, self.offset + pieces[1] - first


class QuestionWindows:
    """Lays out questions with the windows of their contexts.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stride: pieces that two windows share; never more than half a window.
        max_question_length: most pieces of a question; never more than half an example.
    """

    def __init__(self, tokenizer: Any, stride: int, max_question_length: int) -> None:
        self.tokenizer, self.stride, self.max_question_length = tokenizer, stride, max_question_length
        self.encoder = PieceEncoder(tokenizer)
        self._pieces = lru_cache(maxsize=_KEPT)(self.encoder.pieces)

    def layout(self, question: str, context: str, max_length: int) -> QuestionLayout:
        """The windows of a row for examples of at most ``max_length`` tokens, special ones included."""
        template = self.encoder.pair
        room = max_length - template.num_special
        asked = self.encoder.pieces(question).ids[: min(self.max_question_length, room // 2)]
        room -= len(asked)
        pieces = self._pieces(context)
        windows = cut_windows(np.ones_like(pieces.ids), room, min(self.stride, room // 2))
        return QuestionLayout(asked, pieces, windows, offset_of_second(template, len(asked)))


class Candidate(NamedTuple):
    """A stretch of the context, characters ``start`` to ``end`` (one past), with the sum of its two logits."""

    score: float
    start: int
    end: int


def best_answers(
    outputs: Sequence[Logits], layout: QuestionLayout, context: str, count: int, max_length: int
) -> list[Candidate]:
    """The best answers over all windows, best first: all pairs of a start and an end not before it are looked at.

    Args:
        outputs: logits of start and end at every token of each window, float64 [L, 2].
        layout: where the context stands in them; nothing else can be an answer.
        context: its text.
        count: how many answers.
        max_length: D.
    """
    found: dict[tuple[int, int], float] = {}
    for logits_L2, (first, stop) in zip(outputs, layout.windows, strict=True):
        if first == stop:
            continue
        starts_P, ends_P = logits_L2[layout.offset : layout.offset + stop - first].T
        padded = np.concatenate((ends_P, np.full(max_length - 1, -np.inf)))
        scores_PD = starts_P[:, None] + np.lib.stride_tricks.sliding_window_view(padded, max_length)
        # Stretches of blanks are no answers: a few more than asked for are taken.
        wanted = min(2 * count + 8, scores_PD.size)
        for place in np.argpartition(scores_PD, scores_PD.size - wanted, axis=None)[-wanted:].tolist():
            start, length = divmod(place, max_length)
            score = float(scores_PD[start, length])
            if score == -np.inf:
                continue
            last = first + start + length
            span = _trimmed(context, int(layout.context.starts[first + start]), int(layout.context.stops[last]))
            if span is not None and score > found.get(span, -np.inf):
                found[span] = score
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [Candidate(score, *span) for span, score in ranked[:count]]


def no_answer_score(outputs: Sequence[Logits]) -> float:
    """How well "no answer" fits: the lowest over windows of the sum of logits at the first token."""
    return min(float(logits_L2[0].sum()) for logits_L2 in outputs)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A stretch without blanks at its ends; None where nothing is left."""
    shown = text[start:end]
    inner = shown.strip()
    if not inner:
        return None
    start += len(shown) - len(shown.lstrip())
    return start, start + len(inner)
