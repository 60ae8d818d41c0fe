"""JSON files: lists, and SQuAD's tree of questions."""

from __future__ import annotations

import json

import pytest

from tunecore.data.json_rows import JsonOptions, JsonSource
from tunecore.data.sources import ReadSummary, read_records
from tunecore.errors import DataError

ANSWER = {"text": "by boat", "answer_start": 10}
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "They came by boat.",
                    "qas": [
                        {"id": "a", "question": "How?", "answers": [ANSWER], "is_impossible": False},
                        {"id": 7, "question": "Why?", "answers": [], "plausible_answers": [ANSWER]},
                    ],
                },
                {"context": "Nothing is asked.", "qas": []},
            ],
        },
        {"paragraphs": [{"context": "x", "document_id": 1, "qas": [{"question": "y?"}]}]},
    ],
}


def read(tmp_path, value, **options):
    path = tmp_path / "a.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return [(dict(r.fields), r.row) for r in read_records([str(path)], **options)]


def test_squad_gives_a_record_a_question(tmp_path):
    context = {"context": "They came by boat."}
    assert read(tmp_path, SQUAD) == [
        ({"title": "Rivers", "id": "a", "question": "How?", "answers": [ANSWER], "is_impossible": False, **context}, 1),
        ({"title": "Rivers", "id": 7, "question": "Why?", "answers": [], **context}, 2),
        ({"question": "y?", "context": "x"}, 3),
    ]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}], ids=["list", "data"])
def test_lists_of_objects_and_texts(tmp_path, wrap):
    rows = [{"text": "a", "label": 1}, "b"]
    assert read(tmp_path, wrap(rows)) == [({"text": "a", "label": 1}, 1), ({"text": "b"}, 2)]
    assert JsonSource(JsonOptions()).suffixes == (".json",)


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert read(tmp_path, b'\xef\xbb\xbf["a"]') == [({"text": "a"}, 1)]


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    paragraphs = [{"qas": []}, {"context": "x"}, 3, {"context": "x", "qas": ["why?"]}]
    broken = [{"paragraphs": paragraphs}, 5, [1], {"text": "a"}]
    summary = ReadSummary()
    assert read(tmp_path, {"data": broken}, summary=summary) == [({"text": "a"}, 7)]
    assert summary.skipped == {"malformed": 6}
    places = [place.partition("a.json:")[2] for place in summary.places["malformed"]]
    assert places == [
        "1 (a paragraph without context and qas)", "2 (a paragraph without context and qas)",
        "3 (a paragraph without context and qas)", "4 (a question that is a JSON str, not an object)",
        "5 (a JSON int, not an object)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b'[{"a": 1},', r"a\.json: not JSON: .*line 1 column"),
        (b'{"a": 1}\n{"a": 2}\n', r"not JSON: Extra data.*\n.*\.jsonl"),
        (b"[" * 100_000, "not JSON"),
        (b'["caf\xe9"]', "not UTF-8: .* at byte 5"),
        (b'{"rows": []}', "holds an object of 'rows'; it must be a list of objects"),
        (b"3", "holds int; it must be a list of objects"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, value)


def test_real_questions(shared_data):
    qa = shared_data / "qa"
    found = {name: list(read_records([str(qa / name)])) for name in ("xquad.en.json", "200423_covidQA.json")}
    assert [len(rows) for rows in found.values()] == [1190, 1380]
    for rows in found.values():
        assert all({"id", "question", "context", "answers"} <= set(r.fields) for r in rows)
