"""What knows a text by its words alone: a baseline for whatever answers questions about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def likeliest(question: str, sentences: Sequence[str]) -> int:
    """Number of the sentence that shares most words with the question; the first of several."""
    asked = words_of(question)
    return max(range(len(sentences)), key=lambda n: len(asked & words_of(sentences[n])))


def words_of(text: str) -> set[str]:
    """Its different words, in lower case."""
    return set(re.findall(r"\w+", text.lower()))
