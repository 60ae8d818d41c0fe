"""JSON files: a list of objects, or questions in the layout of SQuAD.

SQuAD: Rajpurkar et al. 2016 (arXiv:1606.05250); with questions that have no answer: Rajpurkar et al. 2018
(arXiv:1806.03822).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunecore.data.files import open_binary, read_whole
from tunecore.data.readers import TEXT, Malformed
from tunecore.data.surrogates import LONE_SURROGATE, has_lone_surrogate
from tunecore.errors import DataError
from tunecore.types import Record

_DATA, _PARAGRAPHS, _QUESTIONS = "data", "paragraphs", "qas"


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """Options of json files: none."""


class JsonSource:
    """One JSON value a file: a list of objects (or of strings), that list under "data", or SQuAD's tree of questions.

    A file is read whole. A row's number is its place in the file, from 1.
    """

    suffixes: tuple[str, ...] = (".json",)

    def __init__(self, options: JsonOptions) -> None:
        self.options = options

    def read(self, path: str) -> Iterator[Record]:
        """Objects as records; of SQuAD one record a question: id, title, question, context, answers, is_impossible.

        Raises:
            DataError: the file is not JSON (line and column are named), or neither of these.
        """
        with open_binary(path) as stream:
            raw = read_whole(path, stream)
        try:
            value = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            hint = "A file with one object a line should end in .jsonl." if "Extra data" in str(error) else None
            raise DataError(f"{path}: not JSON: {error}", hint=hint) from error
        rows = value.get(_DATA) if isinstance(value, dict) else value
        if not isinstance(rows, list):
            found = f"an object of {', '.join(map(repr, value))}" if isinstance(value, dict) else type(value).__name__
            raise DataError(
                f"{path}: holds {found}; it must be a list of objects, or have one under {_DATA!r} as SQuAD has"
            )
        escapes = b"\\u" in raw
        for number, fields in enumerate(_rows(rows), start=1):
            broken = escapes and has_lone_surrogate(fields)
            yield Record(Malformed(LONE_SURROGATE) if broken else fields, path, number)


def _rows(rows: list[Any]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get(_PARAGRAPHS), list):
            yield from _questions(row)
        elif isinstance(row, dict):
            yield row
        elif isinstance(row, str):
            yield {TEXT: row}
        else:
            yield Malformed(f"a JSON {type(row).__name__}, not an object")


def _questions(article: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The questions of one article of SQuAD."""
    about = {"title": article["title"]} if "title" in article else {}
    for paragraph in article[_PARAGRAPHS]:
        questions = paragraph.get(_QUESTIONS) if isinstance(paragraph, dict) else None
        if not isinstance(questions, list) or "context" not in paragraph:
            yield Malformed("a paragraph without context and qas")
            continue
        for question in questions:
            if not isinstance(question, dict):
                yield Malformed(f"a question that is a JSON {type(question).__name__}, not an object")
                continue
            kept = {key: question[key] for key in ("id", "question", "answers", "is_impossible") if key in question}
            yield {**about, **kept, "context": paragraph["context"]}
