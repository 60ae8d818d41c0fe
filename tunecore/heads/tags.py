"""Tags of words: what their schemes are, which spans they mark, and which sequences are well-formed.

Schemes: IOB1 (Ramshaw, Marcus 1995, arXiv:cmp-lg/9505040), IOB2 (Ratnaparkhi 1998; CoNLL-2002), BIOES and BILOU
(Ratinov, Roth 2009). Tags of any other kind (parts of speech) mark one word each.
Shape letters: W words, C tags.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
NAMELESS = "_"
"""The type of spans whose tags name none (plain B and I), as seqeval calls it."""
_CHUNK_TAG = re.compile(r"([BIESLU])(?:-(.+))?", re.DOTALL)
_SAME = {"L": "E", "U": "S"}
_ORDER = "BIESLU"


class Span(NamedTuple):
    """Words ``first``, ..., ``stop - 1`` are of one ``type``."""

    type: str
    first: int
    stop: int


def is_chunk_scheme(labels: Collection[str]) -> bool:
    """Whether tags mark spans: each is O or begins with B-, I-, E-, S-, L- or U- (or is such a letter alone)."""
    chunks = [label for label in labels if label != OUTSIDE]
    return bool(chunks) and all(_CHUNK_TAG.fullmatch(label) for label in chunks)


def split_tag(tag: str) -> tuple[str, str]:
    """(O, B, I, E or S; type) of a tag of a chunk scheme; L and U are other letters for E and S."""
    found = _CHUNK_TAG.fullmatch(tag)
    if found is None:
        return OUTSIDE, ""
    prefix, kind = found[1], found[2] or NAMELESS
    return _SAME.get(prefix, prefix), kind


def complete_labels(found: Collection[str]) -> tuple[str, ...]:
    """The tags to tell apart, from those that occur: O first, then by type, B- before I-.

    In a chunk scheme every type gets every prefix that occurs with any. Other tags are sorted, numbers by value.
    """
    if not is_chunk_scheme(found):
        rest = [label for label in found if label != OUTSIDE]
        numbers = all(label.removeprefix("-").isdecimal() for label in rest)
        return (*([OUTSIDE] if OUTSIDE in found else []), *sorted(rest, key=int if numbers else None))
    matches = [_CHUNK_TAG.fullmatch(label) for label in found if label != OUTSIDE]
    prefixes = sorted({match[1] for match in matches if match}, key=_ORDER.index)
    kinds = sorted({match[2] or "" for match in matches if match})
    return (OUTSIDE, *(f"{prefix}-{kind}" if kind else prefix for kind in kinds for prefix in prefixes))


def spans_of(tags: Sequence[str]) -> Iterator[Span]:
    """The spans that tags of a chunk scheme mark, in order, read as conlleval reads them.

    A span begins at B- and S-, at a change of type, and at an I- or E- with no span open before it; so IOB1, IOB2 and
    BIOES are read alike, and a stray I- begins a span.
    """
    before, kind_before, first = OUTSIDE, "", -1
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        begins = prefix != OUTSIDE and (prefix in "BS" or before in "OES" or kind != kind_before)
        if first >= 0 and (begins or prefix == OUTSIDE):
            yield Span(kind_before, first, place)
            first = -1
        if begins:
            first = place
        before, kind_before = prefix, kind


def single_spans(tags: Sequence[str]) -> Iterator[Span]:
    """Every word that is not O as a span of its own: what tags of no chunk scheme mark."""
    for place, tag in enumerate(tags):
        if tag != OUTSIDE:
            yield Span(tag, place, place + 1)


def continuation(label: str, labels: Collection[str]) -> str:
    """The tag of a word's further pieces: I- of the type where the word has B- and there is one, else the word's."""
    inner = f"I{label[1:]}" if is_chunk_scheme([label]) and label[0] == "B" else label
    return inner if inner in labels else label


class Grammar:
    """Which tag may follow which in a chunk scheme.

    I- and E- continue a span of their type; where there is an E- of a type, its B- and I- must be continued. Types
    without B- (tags that only say inside or outside) are free.

    Args:
        labels: the tags, in order.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        split = [split_tag(label) for label in labels]
        opened = {kind for prefix, kind in split if prefix == "B"}
        closed = {kind for prefix, kind in split if prefix == "E"}
        inner_C = np.array([prefix in "IE" and kind in opened for prefix, kind in split])
        waits_C = np.array([prefix in "BI" and kind in opened & closed for prefix, kind in split])
        goes_on_CC = np.array([[a in "BI" and kind == other for _, other in split] for a, kind in split])
        self.allowed_CC: NDArray[np.bool_] = np.where(inner_C, goes_on_CC, ~waits_C[:, None])
        self.starts_C: NDArray[np.bool_] = ~inner_C
        self.ends_C: NDArray[np.bool_] = ~waits_C

    def best_path(self, scores_WC: NDArray[np.float64]) -> list[int]:
        """The well-formed sequence with the highest sum of scores (Viterbi 1967)."""
        if not len(scores_WC):
            return []
        steps_CC = np.where(self.allowed_CC, 0.0, -np.inf)
        score_C = scores_WC[0] + np.where(self.starts_C, 0.0, -np.inf)
        back = []
        for row_C in scores_WC[1:]:
            through_CC = score_C[:, None] + steps_CC
            back.append(through_CC.argmax(0))
            score_C = through_CC.max(0) + row_C
        path = [int((score_C + np.where(self.ends_C, 0.0, -np.inf)).argmax())]
        for pointers_C in reversed(back):
            path.append(int(pointers_C[path[-1]]))
        return path[::-1]
