"""Columns of tagged words: sentences as they stand in the file, and every way they can be spoilt."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.config_io import load_config
from tunecore.data.conll import ConllOptions, ConllSource
from tunecore.data.sources import ReadSummary, expand_paths, read_records
from tunecore.errors import ConfigError, DataError
from tunecore.inputs import sources_of
from tunecore.plugins import load_plugins


def read(path, **options):
    return [(r.fields, r.row) for r in ConllSource(ConllOptions(**options)).read(str(path))]


def write(tmp_path, text, name="a.conll"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_sentences_end_at_empty_lines_and_document_marks(tmp_path):
    path = write(tmp_path, "\n-DOCSTART- -DOCSTART- O\nDe Art O\nArco N B-LOC\n\n\nEn C O\n-DOCSTART- x O\n. P O")
    assert read(path) == [
        ({"tokens": ["De", "Arco"], "tags": ["O", "B-LOC"]}, 3),
        ({"tokens": ["En"], "tags": ["O"]}, 7),
        ({"tokens": ["."], "tags": ["O"]}, 9),
    ]


@pytest.mark.parametrize("blank", ["\n", "\t\n", " \r\n"])
def test_tabs_part_columns_where_a_line_has_them(tmp_path, blank):
    path = write(tmp_path, f"# one\tB-x\n\u00a0\tO\n{blank}\u2028 y\tO\n")
    fields = [f for f, _ in read(path)]
    assert fields == [{"tokens": ["# one", "\u00a0"], "tags": ["B-x", "O"]}, {"tokens": ["\u2028 y"], "tags": ["O"]}]


def test_columns_can_be_named_and_parted_otherwise(tmp_path):
    path = write(tmp_path, "Dat|Pron|O\nis|V|B-x\n")
    named = read(path, delimiter="|", columns=("tokens", "pos", "tags"))
    assert named == [({"tokens": ["Dat", "is"], "pos": ["Pron", "V"], "tags": ["O", "B-x"]}, 1)]
    assert read(path, delimiter="|", columns=("tokens", "tags"))[0][0]["tags"] == ["Pron", "V"]


def test_words_without_tags_are_rows_to_predict(tmp_path):
    assert read(write(tmp_path, "De\nArco\n\nEn\n")) == [({"tokens": ["De", "Arco"]}, 1), ({"tokens": ["En"]}, 4)]


def test_a_sentence_with_a_short_line_is_counted_and_named(tmp_path):
    path = write(tmp_path, "a O\n\nb O\nc\nd O\n\ne O\n")
    summary = ReadSummary()
    good = list(read_records([str(path)], summary=summary))
    assert [r.fields["tokens"] for r in good] == [["a"], ["e"]]
    assert summary.places == {"malformed": [f"{path}:3 (line 4 has 1 of the 2 columns wanted)"]}
    with pytest.raises(DataError, match=r"a\.conll:3: line 4 has 1 of the 2 columns"):
        list(read_records([str(path)], on_bad_row="raise"))


def test_an_encoding_can_be_named(tmp_path):
    path = write(tmp_path, "Coru\u00f1a B-LOC\n".encode("latin-1"), "esp.train")
    with pytest.raises(DataError, match=r"esp\.train:1: not UTF-8: byte 0xf1"):
        list(read_records([str(path)]))
    assert read(path, encoding="latin-1")[0][0]["tokens"] == ["Coru\u00f1a"]
    with pytest.raises(DataError, match=r"esp\.train:1: not ASCII"):
        read(path, encoding="ascii")


def test_the_run_file_names_the_options_of_readers(tmp_path):
    path = write(tmp_path, gzip.compress("Coru\u00f1a x B-LOC\n".encode("latin-1")), "esp.columns.gz")
    registry = load_plugins().registry
    options = {"encoding": "latin-1", "columns": ["tokens", "pos", "tags"], "suffixes": [".columns"]}
    sources = sources_of(registry, load_config({"data": {"sources": {"conll": options}}}))
    (record,) = read_records(expand_paths([path], tuple(sources)), sources)
    assert record.fields == {"tokens": ["Coru\u00f1a"], "pos": ["x"], "tags": ["B-LOC"]}
    assert ".conll" not in sources
    with pytest.raises(ConfigError, match=r"unknown source 'conl'; known: .*Did you mean 'conll'"):
        sources_of(registry, load_config({"data": {"sources": {"conl": {}}}}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "||"}, "one character"),
        ({"columns": ()}, "one at least"),
        ({"columns": ("a", "a")}, "none twice"),
        ({"suffixes": ("conll",)}, "begin with a dot"),
        ({"suffixes": ()}, "begin with a dot"),
        ({"encoding": "klingon"}, "'klingon' is unknown"),
        ({"encoding": "utf-16"}, "does not write ASCII as itself"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        ConllOptions(**options)


WORD = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1).filter(
    lambda word: not word.startswith("-DOCSTART-")
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.tuples(WORD, st.sampled_from(["O", "B-a", "I-a"])), min_size=1), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("conll") / "a.bio"
    path.write_text("\n".join("".join(f"{w} {t}\n" for w, t in s) for s in sentences), encoding="utf-8", newline="")
    found = [list(zip(f["tokens"], f["tags"], strict=True)) for f, _ in read(path)]
    if sentences[0][0][0][0] != "\ufeff":  # at the head of a file it is a byte-order mark
        assert found == sentences


def test_real_columns(shared_data):
    wnut = {name: list(read_records([str(shared_data / "wnut17" / f"{name}.conll")])) for name in ("train", "dev")}
    assert {name: len(rows) for name, rows in wnut.items()} == {"train": 3394, "dev": 1009}
    assert sum(len(r.fields["tokens"]) for r in wnut["dev"]) == 15_733
    archive = shared_data / "nltk" / "conll2002.zip"
    paths = expand_paths([archive])
    assert [path.rpartition("/")[2] for path in paths] == [
        "esp.testa", "esp.testb", "esp.train", "ned.testa", "ned.testb", "ned.train",
    ]  # fmt: skip
    summary = ReadSummary()
    rows = list(read_records(paths, summary=summary))
    sizes = Counter(record.file.rpartition("/")[2] for record in rows)
    assert not summary.skipped
    assert sizes["esp.testa"] == 1915 and sizes["esp.testb"] == 1517 and sizes["ned.train"] == 15_806
    tags = Counter(tag for r in rows if r.file.endswith("esp.train") for tag in r.fields["tags"])
    assert tags["B-PER"] == 4321 and tags["B-LOC"] == 4913 and tags["O"] == 231_920
