"""Rows of questions: their context, the answers in it, and why a row cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tunecore.data.sources import missing_columns, missing_reason
from tunecore.errors import DataError
from tunecore.types import Record

IMPOSSIBLE = "is_impossible"
"""SQuAD 2.0's column for questions without an answer; empty ``answers`` say the same."""


class QuestionColumns(NamedTuple):
    """Names of the columns of a question."""

    question: str
    context: str
    answers: str


class Answer(NamedTuple):
    """An answer, and the character of the context where it begins; -1 where the row does not say."""

    text: str
    start: int

    def is_in(self, context: str) -> bool:
        """Whether the context has this text at that place."""
        return self.start >= 0 and context.startswith(self.text, self.start)


def read_question(record: Record, columns: QuestionColumns) -> tuple[str, str]:
    """(question, context) of a row.

    Raises:
        DataError: one is missing or no text; file, row and the columns found are named.
    """
    if columns.question not in record.fields or columns.context not in record.fields:
        raise missing_columns(record, [columns.question, columns.context])
    for name in (columns.question, columns.context):
        value = record.fields[name]
        if not isinstance(value, str):
            raise DataError(f"{record.file}:{record.row}: {name}: {missing_reason(value)}")
    return record.fields[columns.question], record.fields[columns.context]


def read_answers(record: Record, column: str) -> list[Answer]:
    """The answers of a row that ``rejected`` lets through; none where the question has no answer."""
    if record.fields.get(IMPOSSIBLE) is True:
        return []
    return _answers(record.fields[column]) or []


def place_of(answers: Sequence[Answer], context: str) -> tuple[int, int] | None:
    """Where the answer to learn stands, without blanks around it: (first character, one past the last).

    It is the first answer that the context has where it says.
    """
    answer = next((answer for answer in answers if answer.is_in(context)), None)
    if answer is None:
        return None
    start = answer.start + len(answer.text) - len(answer.text.lstrip())
    return start, start + len(answer.text.strip())


def rejected(record: Record, columns: QuestionColumns, files: set[str], *, labelled: bool) -> str | None:
    """Why a row cannot be used; None where it can.

    Args:
        record: the row.
        columns: where question, context and answers stand.
        files: files of which a row had the columns; this one's joins them.
        labelled: whether answers are needed.

    Raises:
        DataError: the first row of its file lacks a column.
    """
    wanted = columns if labelled else columns[:2]
    lacking = [column for column in wanted if column not in record.fields]
    if lacking:
        if record.file not in files:
            raise missing_columns(record, wanted)
        return f"{lacking[0]}: missing"
    files.add(record.file)
    for name in columns[:2]:
        reason = missing_reason(record.fields[name])
        if reason is not None:
            return f"{name}: {reason}"
    if not labelled or record.fields.get(IMPOSSIBLE) is True:
        return None
    answers = _answers(record.fields[columns.answers])
    if answers is None:
        missing = record.fields[columns.answers] is None
        what = "missing" if missing else "neither SQuAD's list nor {text: [...], answer_start: [...]}"
        return f"{columns.answers}: {what}"
    if any(not answer.text.strip() for answer in answers):
        return f"{columns.answers}: empty"
    if answers and place_of(answers, record.fields[columns.context]) is None:
        return f"{columns.answers}: the {columns.context} has another text at answer_start"
    return None


def _answers(value: Any) -> list[Answer] | None:
    """The answers of a cell; None where it is of no known form."""
    if isinstance(value, Mapping):
        texts: Any = value.get("text")
        starts: Any = value.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not _is_list(texts):
            return None
        starts = [None] * len(texts) if starts is None else starts
        if not _is_list(starts) or len(starts) != len(texts):
            return None
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not _is_list(value):
        return None
    found = []
    for answer in value:
        text = answer.get("text") if isinstance(answer, Mapping) else None
        start = answer.get("answer_start") if isinstance(answer, Mapping) else None
        if not isinstance(text, str) or not (start is None or isinstance(start, int | np.integer)):
            return None
        found.append(Answer(text, -1 if start is None else int(start)))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
