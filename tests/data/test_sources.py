"""Reading: every kind of file, plain, gzipped and archived; every bad input named with its file and row."""

import gzip
import json
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunecore.data.files import DEFAULT_SUFFIXES
from tunecore.data.readers import JsonLinesOptions, JsonLinesSource, TableOptions, TableSource, TextOptions, TextSource
from tunecore.data.sources import (
    SOURCES,
    ReadSummary,
    builtin_sources,
    by_suffix,
    documents,
    expand_paths,
    read_records,
    usable_records,
)
from tunecore.errors import ConfigError, DataError

ROWS = [{"text": "one film", "label": "1"}, {"text": "two, films", "label": "0"}]


def as_file(suffix):
    """The bytes of ROWS in a kind of file."""
    if suffix == ".txt":
        return b"one film"
    if suffix == ".jsonl":
        return "\n".join(json.dumps(r) for r in ROWS).encode()
    if suffix == ".csv":
        return b'text,label\none film,1\n"two, films",0\n'
    if suffix == ".tsv":
        return b"text\tlabel\none film\t1\ntwo, films\t0\n"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def read(*paths, **options):
    return [(r.fields, r.row) for r in read_records(expand_paths(list(paths)), **options)]


@pytest.mark.parametrize("packed", ["plain", "gz", "zip", "zip of gz"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_reads_plain_gzipped_and_archived(tmp_path, suffix, packed):
    data = as_file(suffix)
    path = tmp_path / f"data{suffix}"
    if packed == "plain":
        path.write_bytes(data)
    elif packed == "gz":
        path = tmp_path / f"data{suffix}.gz"
        path.write_bytes(gzip.compress(data))
    else:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            inner = (f"in/data{suffix}", data) if packed == "zip" else (f"in/data{suffix}.gz", gzip.compress(data))
            archive.writestr(*inner)
            archive.writestr("in/notes.pdf", "left out")
    fields = [f for f, _ in read(path)]
    assert fields == ([{"text": "one film"}] if suffix == ".txt" else ROWS)


def test_rows_know_the_line_they_start_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ntext,label\r\n"two\nlines",1\n\nlast,0\n')
    assert read(path) == [({"text": "two\nlines", "label": "1"}, 3), ({"text": "last", "label": "0"}, 6)]


def test_a_tsv_takes_quotes_as_they_are(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\nthe " quote\t1\n"all"\t0\n')
    assert [f["sentence"] for f, _ in read(path)] == ['the " quote', '"all"']


def test_byte_order_mark_and_line_ends_are_taken_off(tmp_path):
    for suffix in (".csv", ".tsv", ".txt"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + (b"text\r\na\r\n" if suffix != ".txt" else b"a\r\nb\r\n"))
        assert read(path)[0][0] == {"text": "a" if suffix != ".txt" else "a\nb\n"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("file", ["a\nb\n\nc\n"]),
        ("blank_line", ["a\nb\n", "c\n"]),
        ("line", ["a\n", "b\n", "c\n"]),
    ],
)
def test_what_a_document_of_a_text_file_is(tmp_path, mode, expected):
    path = tmp_path / "a.txt"
    path.write_text("\na\nb\n\nc\n")
    records = list(TextSource(TextOptions(documents=mode)).read(str(path)))
    assert [r.fields["text"] for r in records] == expected
    assert records[0].row == 2


def test_a_huge_text_file_is_cut_so_that_memory_stays_flat(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789\n" * 100)
    texts = [r.fields["text"] for r in TextSource(TextOptions(max_chars=100)).read(str(path))]
    assert "".join(texts) == "0123456789\n" * 100 and max(map(len, texts)) <= 111 and len(texts) == 10


def test_a_file_without_a_header_takes_its_columns_from_the_option(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a b,c d,5.0\n")
    source = by_suffix([TableSource(TableOptions(columns=("s1", "s2", "score")), ".csv", ",", True)])
    assert read(path, sources=source) == [({"s1": "a b", "s2": "c d", "score": "5.0"}, 1)]


def test_tables_are_read_whatever_their_files_are_called(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text('one "two\tb\n')
    source = TableSource(TableOptions(columns=("first", "second"), suffixes=(".txt",)), ".tsv", "\t", False)
    assert source.suffixes == (".txt",)
    assert read(path, sources=by_suffix([source])) == [({"first": 'one "two', "second": "b"}, 1)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TableOptions(suffixes=("txt",)), lambda: TableOptions(suffixes=(".tar.gz",)),
        lambda: TextOptions(documents="page"), lambda: TextOptions(max_chars=0), lambda: TableOptions(delimiter="||"),
        lambda: TableOptions(columns=("a", "a")),
    ],
)
def test_reader_options_are_checked(make):
    with pytest.raises(ConfigError):
        make()


def test_folders_globs_and_files_expand_sorted_and_once(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.csv", "sub/.hidden.txt", ".git/d.txt", "e.pdf", "g.txt.gz"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    paths = expand_paths([tmp_path / "b.txt", tmp_path, str(tmp_path / "*.txt")])
    names = [os.path.relpath(path, tmp_path) for path in paths]
    assert names == ["b.txt", "a.txt", "g.txt.gz", os.path.join("sub", "c.csv")]


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "train.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"trian.csv: no such file[\s\S]*Did you mean .*train.csv"):
        expand_paths([str(tmp_path / "trian.csv")])
    with pytest.raises(DataError, match="does not exist either"):
        expand_paths([str(tmp_path / "no" / "x.csv")])


def test_nothing_to_read_is_named(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"holds no file ending in \.txt"):
        expand_paths([tmp_path])
    with pytest.raises(DataError, match="no file matches"):
        expand_paths([str(tmp_path / "*.txt")])
    with pytest.raises(DataError, match=r"unknown kind of file '.pdf'; known: .*\.csv"):
        expand_paths([tmp_path / "a.pdf"])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.pdf", "x")
    with pytest.raises(DataError, match="archive holds no file"):
        expand_paths([tmp_path / "z.zip"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"a.txt: cannot be read: Permission denied"):
        read(path)


def test_a_file_the_system_refuses_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"a.txt: cannot be read: Permission denied"):
        list(read_records([str(path)]))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_file_that_is_not_utf8_is_named_with_line_and_byte(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"text": "x"}\ncaf\xe9,1\n' if suffix == ".jsonl" else b"text\ncaf\xe9\n")
    at = 17 if suffix == ".jsonl" else 8
    with pytest.raises(DataError, match=rf"a{suffix}:2: not UTF-8: byte 0xe9 at byte {at} [\s\S]*iconv"):
        read(path)


def test_utf16_is_recognised(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.zip", "a.parquet", "a.parquet.gz"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"no parquet") if name == "a.parquet.gz" else b"\x1f\x8bgarbage")
    with pytest.raises(DataError, match=name):
        read(path)


def test_a_truncated_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-200])
    with pytest.raises(DataError, match="damaged"):
        read(path)


def test_a_missing_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match="no such member"):
        list(read_records([f"{tmp_path / 'z.zip'}::b.txt"]))


def test_malformed_rows_are_counted_and_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\nshort\nlong,1,2\nfine,0\n")
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"text": \n[1]\n"just text"\n')
    summary = ReadSummary()
    good = list(read_records(expand_paths([tmp_path]), summary=summary))
    assert [r.fields["text"] for r in good] == ["fine", "fine", "fine", "just text"]
    assert (summary.files, summary.rows, summary.skipped) == (2, 8, {"malformed": 4})
    assert any("a.csv:3 (1 fields where the header has 2)" in place for place in summary.places["malformed"])
    assert "skipped 4 malformed" in summary.describe()
    with pytest.raises(DataError, match=r"a.csv:3: 1 fields where the header has 2[\s\S]*on_bad_row"):
        list(read_records(expand_paths([tmp_path]), on_bad_row="raise"))


def test_a_quote_that_never_closes_is_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"never closed\n')
    summary = ReadSummary()
    assert [r.fields["text"] for r in read_records([str(path)], summary=summary)] == ["fine"]
    assert summary.skipped == {"malformed": 1}


def test_a_field_longer_than_the_csv_modules_limit_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read(path)[0][0]["text"]) == 200_000


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="names 'text' twice"):
        read(path)


def test_the_text_column_is_found_or_the_columns_are_listed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sentence,label\na,1\n")
    records = list(read_records([str(path)]))
    assert [t for t, _ in documents(records, "sentence")] == ["a"]
    with pytest.raises(DataError, match=r"no column 'text'; columns found: sentence, label[\s\S]*data.text"):
        list(documents(records))
    with pytest.raises(DataError, match="no column 'review'"):
        list(documents(records, "review"))
    only = tmp_path / "b.csv"
    only.write_text("body\nthe only column\n")
    assert [t for t, _ in documents(read_records([str(only)]))] == ["the only column"]


def test_nan_and_missing_texts_are_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": NaN}\n{"text": null}\n{"text": " "}\n{"text": 5}\n{"other": "x"}\n')
    (tmp_path / "b.csv").write_text("text,label\nNaN,1\n,0\nthe nan bread,1\n")
    pq.write_table(pa.table({"text": [None, float("nan")]}), tmp_path / "c.parquet")
    summary = ReadSummary()
    records = list(read_records(expand_paths([tmp_path]), summary=summary))
    assert [t for t, _ in documents(records, summary=summary)] == ["fine", "the nan bread"]
    assert summary.skipped == {"text: NaN": 3, "text: missing": 3, "text: empty": 2, "text: int, not text": 1}
    assert summary.places["text: NaN"][0] == f"{path}:2"
    assert summary.as_dict()["skipped"]["text: empty"] == 2
    with pytest.raises(DataError, match=r"a.jsonl:2: text: NaN"):
        list(documents(records, on_bad_row="raise"))


def test_usable_records_need_their_columns_and_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,text_pair,label\na,b,1\na,,1\na,b,\n")
    records = list(read_records([str(path)]))
    summary = ReadSummary()
    kept = list(usable_records(records, ["text", "text_pair"], ["label"], summary=summary))
    assert [r.row for r in kept] == [2, 4] and summary.skipped == {"text_pair: empty": 1}
    with pytest.raises(DataError, match="no column 'target'; columns found: text, text_pair, label"):
        list(usable_records(records, ["text"], ["target"]))
    with pytest.raises(DataError, match=r"a\.csv:3"):
        list(usable_records(records, ["text", "text_pair"], on_bad_row="raise"))


def test_a_reader_of_a_plugin_joins_and_can_replace_a_built_in():
    class Conll:
        suffixes = (".conll", ".txt")

        def read(self, path):
            yield from ()

    sources = by_suffix([*builtin_sources().values(), Conll()])
    assert isinstance(sources[".txt"], Conll) and isinstance(sources[".conll"], Conll)
    assert isinstance(sources[".jsonl"], JsonLinesSource)


def test_the_registered_sources_are_made_from_their_options():
    made = [factory(options()) for factory, options in SOURCES.values()]
    assert {s for source in made for s in source.suffixes} == set(DEFAULT_SUFFIXES)
    assert JsonLinesSource(JsonLinesOptions()).suffixes == (".jsonl", ".ndjson")


def test_real_tables(shared_data):
    rows = list(read_records(expand_paths([shared_data / "sst2_glue" / "train.tsv"])))
    assert len(rows) == 60_614 and set(rows[0].fields) == {"sentence", "label"}
    summary = ReadSummary()
    source = by_suffix([TableSource(TableOptions(columns=("s1", "s2", "score")), ".csv", ",", True)])
    pairs = list(read_records([str(shared_data / "stsb" / "stsb-en-dev.csv")], source, summary=summary))
    assert len(pairs) == 1500 and not summary.skipped
    abstracts = list(read_records([str(shared_data / "scitldr" / "dev.jsonl")]))
    assert len(abstracts) == 619
    assert len(expand_paths([shared_data / "text" / "english_novels_100.zip"])) == 100
