"""Pairs of texts: from two files line by line, or two columns, to rows of two texts."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.clean import Cleaner, CleaningOptions
from tunecore.data.corpus import build_corpus
from tunecore.data.files import expand_paths, parallel_files
from tunecore.data.sources import ReadSummary, documents, read_records, text_pairs
from tunecore.data.text_pairs import split_texts
from tunecore.errors import ConfigError, DataError

ENGLISH = ["The red lamp.", "A stone sings quietly.", "Under the river.", "Over a tiny lamp."]
GERMAN = ["Die rote Lampe.", "Ein Stein singt leise.", "Unter dem Fluss.", "Über einer kleinen Lampe."]
PAIRS = list(zip(ENGLISH, GERMAN, strict=True))


@pytest.fixture
def parallel(tmp_path):
    """train.{en,de}.gz, and its path as a user writes it."""
    for name, texts in (("en", ENGLISH), ("de", GERMAN)):
        (tmp_path / f"train.{name}.gz").write_bytes(gzip.compress("\n".join(texts).encode() + b"\n"))
    return str(tmp_path / "train.{en,de}.gz")


def pairs_of(paths, first=None, second=None, **options):
    return list(text_pairs(read_records(expand_paths(paths)), first, second, **options))


def test_parallel_files_are_a_table_of_lines(parallel):
    records = list(read_records(expand_paths([parallel])))
    assert [(r.fields, r.row) for r in records] == [({"en": e, "de": d}, n) for n, (e, d) in enumerate(PAIRS, 1)]
    assert pairs_of([parallel]) == PAIRS
    assert pairs_of([parallel], "de", "en") == [(d, e) for e, d in PAIRS]
    assert pairs_of([parallel], "de") == [(d, e) for e, d in PAIRS]
    assert pairs_of([parallel], None, "en") == [(d, e) for e, d in PAIRS]


def test_one_side_is_plain_text(parallel):
    assert [text for text, _ in documents(read_records(expand_paths([parallel])), "de")] == GERMAN


def test_two_columns_of_tables_and_json_lines(tmp_path):
    tsv, jsonl, wide = tmp_path / "a.tsv", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    tsv.write_text("en\tde\n" + "".join(f"{e}\t{d}\n" for e, d in PAIRS))
    jsonl.write_text("".join(json.dumps({"text": e, "text_pair": d}) + "\n" for e, d in PAIRS))
    wide.write_text("".join(json.dumps({"id": 1, "en": e, "de": d}) + "\n" for e, d in PAIRS))
    assert pairs_of([str(tsv), str(jsonl)]) == PAIRS * 2
    assert pairs_of([str(wide)], "en", "de") == PAIRS
    with pytest.raises(DataError, match=r"no column 'text', 'text_pair'; columns found: id, en, de"):
        pairs_of([str(wide)])


def test_a_pair_that_lacks_a_text_is_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"en": "one", "de": "eins"}, {"en": "two", "de": "  "}, {"en": None, "de": "drei"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = ReadSummary()
    assert pairs_of([str(path)], summary=summary) == [("one", "eins")]
    assert summary.skipped == {"de: empty": 1, "en: missing": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:2: de: empty"):
        pairs_of([str(path)], on_bad_row="raise")


def test_files_of_unequal_length_are_refused(tmp_path):
    (tmp_path / "t.en").write_text("a\nb\nc\n")
    (tmp_path / "t.de").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"t\.de ends before line 3"):
        pairs_of([str(tmp_path / "t.{en,de}")])


def test_paths_with_braces_that_mean_nothing_are_refused(tmp_path):
    (tmp_path / "t.en").write_text("a\n")
    with pytest.raises(DataError, match=r"t\.de: no such file"):
        expand_paths([tmp_path / "t.{en,de}"])
    for path in ("t.{en,en}", "t.{en,}", "{a,b}.{c,d}"):
        with pytest.raises(DataError, match="braces"):
            expand_paths([tmp_path / path])
    assert parallel_files("plain.txt") == {}
    named = tmp_path / "odd{1,2}.txt"
    named.write_text("a file that is really called so")
    assert expand_paths([named]) == [str(named)]


def test_cleaning_drops_a_pair_for_either_text_and_repeats_for_both():
    cleaner = Cleaner(CleaningOptions(min_chars=3, deduplicate=True))
    given_ = [("one  text", "ein Text"), ("one text", "ein Text"), ("one text", "anders"), ("two", "zu"), ("", "leer")]
    assert [cleaner.clean_pair(*pair) for pair in given_] == [
        ("one text", "ein Text"), None, ("one text", "anders"), None, None,
    ]  # fmt: skip
    summary = cleaner.summary
    assert (summary.documents, summary.kept, summary.duplicates, summary.too_short, summary.empty) == (5, 2, 1, 1, 1)


def test_rows_hold_the_two_texts_as_the_tokenizer_encodes_them(parallel, tokenizer, tmp_path):
    corpus = build_corpus([parallel], tokenizer, cache_dir=tmp_path, columns=("second_starts", "word_starts"))
    rows = corpus.rows("text_pair", 64)
    assert len(rows) == len(PAIRS)
    for n, pair in enumerate(PAIRS):
        texts = split_texts(rows[n])
        assert [t.ids.tolist() for t in texts] == [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair
        ]
        assert all(text.columns["word_starts"][0] for text in texts)
        whole = tokenizer(*pair)
        assert rows.add_special(rows[n]).input_ids.tolist() == whole["input_ids"]
        assert rows.add_special(rows[n]).token_type_ids.tolist() == whole["token_type_ids"]
        assert rows.add_special(texts[1]).input_ids.tolist() == tokenizer(pair[1])["input_ids"]


def test_the_cache_knows_the_order_of_the_columns(parallel, tokenizer, tmp_path):
    made = [
        build_corpus(
            [parallel], tokenizer, cache_dir=tmp_path, columns=("second_starts",), text_column=one, pair_column=other
        )
        for one, other in ((None, None), ("en", "de"), ("de", "en"))
    ]
    assert made[0].digest == made[1].digest != made[2].digest
    plain = build_corpus([parallel], tokenizer, cache_dir=tmp_path, text_column="de")
    assert plain.num_documents == 4 and len({c.file.path for c in (*made, plain)}) == 4


def test_pairs_are_held_out_whole(parallel, tokenizer, tmp_path):
    corpus = build_corpus([parallel], tokenizer, cache_dir=tmp_path, columns=("second_starts",))
    train, held = corpus.split(0.3, seed=0)
    assert len(train.rows("text_pair", 64)) + len(held.rows("text_pair", 64)) == 4
    assert held.num_documents >= 1


def test_a_corpus_of_single_texts_has_no_pairs(tokenizer, tmp_path, parallel):
    corpus = build_corpus([parallel], tokenizer, cache_dir=tmp_path, text_column="en")
    with pytest.raises(DataError, match="second_starts"):
        corpus.rows("text_pair", 64)
    pairs = build_corpus([parallel], tokenizer, cache_dir=tmp_path, columns=("second_starts",))
    with pytest.raises(ConfigError, match="no room"):
        pairs.rows("text_pair", 4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), st.integers(5, 60))
def test_rows_too_long_lose_the_ends_of_their_texts(tmp_path_factory, tokenizer, lengths, max_length):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "p.jsonl"
    words = ["red", "green", "blue", "lamp", "river", "stone"]
    texts = [tuple(" ".join(words[(i * j + k) % 6] for j in range(n)) for k, n in enumerate(pair))
             for i, pair in enumerate(lengths)]  # fmt: skip
    path.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in texts))
    rows = build_corpus([path], tokenizer, cache_dir=folder, columns=("second_starts",)).rows("text_pair", max_length)
    budget = max_length - 3
    for n, pair in enumerate(texts):
        first, second = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in pair)
        # One token at a time from the longer one, the second on a tie: the same lengths, by brute force.
        a, b = len(first), len(second)
        while a + b > budget:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        got = [text.ids.tolist() for text in split_texts(rows[n])]
        assert got == [first[:a], second[:b]]
        assert len(rows.add_special(rows[n])) <= max_length
        assert np.flatnonzero(rows[n].columns["second_starts"]).tolist() == [a]
