"""Files that are not what they should be: a typed error that names file and row, or a row skipped and counted."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import socket
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunecore.data import files
from tunecore.errors import DataError

pytestmark = pytest.mark.timeout(60)

ROWS = "".join(f"this film is fine number {n},pos\na dull play {n},neg\n" for n in range(8))
CSV = "text,label\n" + ROWS
JSONL = "".join(
    json.dumps(dict(zip(("text", "label"), line.split(","), strict=True))) + "\n" for line in ROWS.splitlines()
)


def zipped(**members):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return held.getvalue()


def parquet(**columns):
    held = io.BytesIO()
    pq.write_table(pa.table(columns), held)
    return held.getvalue()


def not_utf8_parquet():
    values = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    return parquet(text=values, label=["pos"])


def feather():
    held = io.BytesIO()
    with pa.ipc.new_file(held, pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch({"text": ["fine"]}))
    return held.getvalue()


def encrypted():
    """The archive says that its member is encrypted."""
    content = bytearray(zipped(a_csv=CSV))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


WRONG = {
    "empty csv": ("a.csv", "", r"no row can be used: 0 rows"),
    "header only": ("a.csv", "text,label\n", r"no row can be used: 0 rows"),
    "nothing but blank lines": ("a.csv", "\n\n\n", r"no row can be used"),
    "NUL bytes alone": ("a.csv", b"\0" * 64, r"a.csv"),
    "duplicate columns": ("a.csv", "text,text,label\nfine,odd,pos\n", r"a.csv:1: the header names 'text' twice"),
    "UTF-16": ("a.csv", CSV.encode("utf-16"), r"a.csv: not UTF-8: .*byte-order mark of UTF-16.*\n.*iconv"),
    "an unclosed quote from the first row on": ("a.csv", 'text,label\n"fine,pos\n', r"a.csv:2\b"),
    "every row ragged": ("a.csv", "text,label\nfine\nodd,pos,3\n", r"2 malformed \(first: .*a.csv:2 \(1 fields"),
    "CR alone": ("a.csv", CSV.replace("\n", "\r"), r"a.csv:1 \(not well-formed: a carriage return in it; lines must"),
    "gz cut short": ("a.csv.gz", gzip.compress(CSV.encode())[:-12], r"a.csv.gz: the compressed file is damaged"),
    "gz of noise": ("a.csv.gz", os.urandom(64), r"a.csv.gz: the compressed file is damaged"),
    "plain text called gz": ("a.csv.gz", CSV, r"a.csv.gz: the compressed file is damaged"),
    "gz with a wrong checksum": ("a.csv.gz", gzip.compress(CSV.encode())[:-8] + bytes(8), r"a.csv.gz: .*damaged"),
    "bz2 called gz": ("a.csv.gz", bz2.compress(CSV.encode()), r"a.csv.gz: .*damaged"),
    "zip cut short": ("a.zip", zipped(a_csv=CSV)[:-30], r"a.zip: the compressed file is damaged"),
    "an empty zip": ("a.zip", zipped(), r"a.zip: the archive holds no file ending in"),
    "a zip of pictures": ("a.zip", zipped(a_png=b"x"), r"a.zip: the archive holds no file ending in"),
    "an encrypted zip": ("a.zip", encrypted(), r"a.zip::a.csv: the archive cannot be read: .*encrypted"),
    "a zip in a zip": ("a.zip", zipped(b_zip=zipped(a_csv=CSV)), r"a.zip: the archive holds no file ending in"),
    "parquet cut short": ("a.parquet", parquet(text=["fine"])[:-9], r"a.parquet: not a readable parquet file"),
    "parquet of noise": ("a.parquet", os.urandom(200), r"a.parquet: not a readable parquet file"),
    "an empty parquet file": ("a.parquet", b"", r"a.parquet: not a readable parquet file"),
    "parquet text that is not UTF-8": ("a.parquet", not_utf8_parquet(), r"a.parquet: not a readable parquet file"),
    "parquet of binary columns": ("a.parquet", parquet(text=[b"fine"], label=["pos"]), r"1 text: bytes, not text"),
    "parquet without the columns": ("a.parquet", parquet(review=["fine"]), r"no column 'text', 'label'; .*review"),
    "an arrow file": ("a.arrow", feather(), r"a.arrow: unknown kind of file '.arrow'; known: .*parquet"),
    "jsonl cut short": ("a.jsonl", JSONL[:30], r"1 malformed \(first: .*a.jsonl:1 \(not JSON"),
    "json cut short": ("a.json", "[" + JSONL[:30], r"a.json: not JSON: "),
    "json of jsonl": ("a.json", JSONL, r"a.json: not JSON: .*\n.*\.jsonl"),
    "a json number": ("a.json", "3", r"a.json: holds int; it must be a list of objects"),
    "a list of numbers": ("a.json", "[1, 2]", r"2 malformed \(first: .*a.json:1 \(a JSON int, not an object"),
    "json of another layout": ("a.json", '{"rows": []}', r"a.json: holds an object of 'rows'"),
    "json nested too deep": ("a.json", "[" * 100_000, r"a.json: not JSON: "),
    "jsonl nested too deep": ("a.jsonl", '{"a":' * 100_000 + "\n", r"1 malformed \(first: .*a.jsonl:1 \(not JSON"),
    "a number of many digits": ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", r"1 malformed .*a.jsonl:1 \(not JSON"),
    "a picture": ("a.png", b"\x89PNG", r"a.png: unknown kind of file '.png'"),
    "no suffix": ("corpus", CSV, r"corpus: unknown kind of file '\(no suffix\)'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_read_is_named(finetune, file, case):
    name, content, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        finetune(file(name, content))


LONG = "word " * 40_000
SKIPPED = {
    "a row of NUL bytes": ("a.csv", CSV + "\0\0\0\n", r"1 malformed \(first: .*a.csv:18"),
    "ragged rows": ("a.csv", CSV + "fine\nfine,pos,3\n", r"2 malformed \(first: .*a.csv:18 \(1 fields where"),
    "a quote that never closes": ("a.csv", CSV + '"fine,pos\n', r"1 malformed \(first: .*a.csv:18 \(not well-formed"),
    "an empty field": ("a.csv", CSV + ",pos\n", r"1 text: empty \(first: .*a.csv:18"),
    "jsonl cut short": ("a.jsonl", JSONL[:-9], r"1 malformed \(first: .*a.jsonl:16 \(not JSON"),
    "jsonl of other kinds": ("a.jsonl", JSONL + "[1]\nnull\n3\n", r"3 malformed \(first: .*a.jsonl:17 \(a JSON list"),
    "jsonl without the column": ("a.jsonl", JSONL + '{"label": "pos"}\n', r"1 text: missing \(first: .*a.jsonl:17"),
    "jsonl of a number as text": ("a.jsonl", JSONL + '{"text": 3}\n', r"1 text: int, not text \(first: .*a.jsonl:17"),
    "lone surrogates": (
        "a.jsonl", JSONL + '{"text": "\\ud800"}\n', r"1 malformed \(first: .*a.jsonl:17 \(a lone surrogate",
    ),
    "parquet with gaps": (
        "a.parquet", parquet(text=["fine", None, "dull"], label=["p", "n", "n"]), r"1 text: missing .*a.parquet:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED)
def test_a_row_that_cannot_be_used_is_skipped_counted_and_named(finetune, file, tmp_path, caplog, case):
    name, content, message = SKIPPED[case]
    path = file(name, content)
    finetune(path)
    assert any(re.search(message, text) for text in caplog.messages), caplog.messages
    with pytest.raises(DataError, match=r"on_bad_row: skip"):
        finetune(path, on_bad_row="raise", output_dir=tmp_path / "another")


READ = {
    "a byte-order mark": ("a.csv", b"\xef\xbb\xbf" + CSV.encode()),
    "CRLF": ("a.csv", CSV.replace("\n", "\r\n")),
    "control characters": ("a.csv", CSV.replace("film", "fi\x07lm\x1b[31m")),
    "a NUL inside a text": ("a.jsonl", JSONL.replace("film", "fi\\u0000lm")),
    "a huge field": ("a.csv", CSV + f'"{LONG}",pos\n'),
    "special tokens in the text": ("a.csv", CSV.replace("film", "[MASK] [SEP] [CLS] [PAD]")),
    "duplicate keys of an object": ("a.jsonl", JSONL.replace('"text"', '"text": "odd", "text"')),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_that_is_odd_but_right_is_read_whole(finetune, file, caplog, case):
    name, content = READ[case]
    assert finetune(file(name, content)).steps == 2
    assert "skipped" not in caplog.text


def test_a_file_with_lone_surrogates_in_memory_is_like_one_on_disk(finetune, reviews, caplog):
    finetune([*reviews, {"text": "\ud800 fine", "label": "pos"}])
    assert "1 malformed" in caplog.text and "lone surrogate" in caplog.text


def test_one_line_of_fifty_megabytes_is_one_bad_row(finetune, file, caplog):
    path = file("a.jsonl", JSONL + '{"text": "' + "x" * 50_000_000 + "\n")
    finetune(path)
    assert "1 malformed" in caplog.text and "a.jsonl:17" in caplog.text


def test_an_archive_whose_members_climb_out_is_read_where_it_is(finetune, file, tmp_path):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../../outside.csv", CSV)
    assert finetune(file("a.zip", held.getvalue())).steps == 2
    assert not list(tmp_path.parent.rglob("outside.csv"))


def a_folder(path):
    path.mkdir()


def a_folder_of_pictures(path):
    path.mkdir()
    (path / "a.png").write_bytes(b"x")


def a_broken_link(path):
    path.symlink_to(path.with_name("gone.csv"))


def a_link_to_itself(path):
    path.symlink_to(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


NO_FILES = {
    "an empty folder": (a_folder, "a.csv", r"a.csv: the folder holds no file ending in"),
    "a folder of pictures": (a_folder_of_pictures, "a.csv", r"a.csv: the folder holds no file ending in"),
    "a broken link": (a_broken_link, "a.csv", r"a.csv: no such file"),
    "a link to itself": (a_link_to_itself, "a.csv", r"a.csv: no such file"),
    "a pipe": (os.mkfifo, "a.csv", r"a.csv: is a pipe or a device, not a file"),
    "a pipe called zip": (os.mkfifo, "a.zip", r"a.zip: is a pipe or a device, not a file"),
    "a socket": (a_socket, "a.csv", r"a.csv: cannot be read: No such device"),
    "a name with a NUL": (lambda path: None, "a\0.csv", r"no such file"),
    "a name too long": (lambda path: None, "a" * 5000 + ".csv", r"no such file"),
    "a member of no archive": (lambda path: None, "a.zip::b.csv", r"a.zip::b.csv: cannot be read: No such file"),
    "a pattern without a match": (lambda path: None, "*.csv", r"no file matches this pattern"),
    "parallel files that are not there": (lambda path: None, "a.{en,de}", r"a.en: no such file"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_named_at_once(finetune, tmp_path, monkeypatch, case):
    make, name, message = NO_FILES[case]
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    make(type(tmp_path)(name))
    with pytest.raises(DataError, match=message):
        finetune(name)


BOMBS = {
    "a line without end": ("a.csv", b"text,label\n" + b"x" * 5_000_000, r"a.zip::a.csv:2: longer than 1 MiB"),
    "json without end": ("a.json", b"[" + b" " * 5_000_000 + b"]", r"a.zip::a.json: longer than 1 MiB.*\n.*jsonl"),
    "parquet without end": ("a.parquet", bytes(5_000_000), r"a.zip::a.parquet: longer than 1 MiB, and this kind"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_archive_of_an_endless_file_does_not_fill_the_memory(finetune, file, monkeypatch, case):
    name, content, message = BOMBS[case]
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(files, "MOST_WHOLE", 1 << 20)
    path = file("a.zip", zipped(**{name.replace(".", "_"): content}))
    assert os.path.getsize(path) < 10_000
    with pytest.raises(DataError, match=message):
        finetune(path)
