"""The corpus: what went in comes out, it is made once, damage is noticed, held-out text never overlaps."""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.clean import CleaningOptions
from tunecore.data.corpus import Corpus, build_corpus
from tunecore.data.corpus_file import CorpusFile, CorpusWriter
from tunecore.data.sentences import split_sentences
from tunecore.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from tunecore.errors import ConfigError, DataError


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def document_ids(corpus, d):
    return corpus.file.ids[corpus.file.offsets[d] : corpus.file.offsets[d + 1]].tolist()


@pytest.fixture
def texts(corpus):
    return texts_of(Path(corpus.file.path).with_name("text.jsonl"))


def test_documents_come_back_token_for_token(corpus, tokenizer, texts):
    assert corpus.num_documents == len(texts) == 40
    for d, text in enumerate(texts):
        assert document_ids(corpus, d) == tokenizer(text, add_special_tokens=False).input_ids
    assert corpus.file.ids.dtype == np.uint16 and not corpus.file.ids.flags.writeable
    assert corpus.num_tokens == len(corpus.file.ids) == corpus.summary["tokens"]


def test_boundary_columns_mark_words_and_sentences(corpus, tokenizer, texts):
    for d, text in enumerate(texts[:8]):
        lo, hi = corpus.file.offsets[d], corpus.file.offsets[d + 1]
        words = tokenizer(text, add_special_tokens=False).word_ids()
        expected = [i == 0 or words[i] != words[i - 1] for i in range(len(words))]
        assert corpus.file.bits("word_starts", lo, hi).tolist() == expected
        lengths = [len(tokenizer(s, add_special_tokens=False).input_ids) for s in split_sentences(text)]
        starts = np.flatnonzero(corpus.file.bits("sentence_starts", lo, hi))
        assert starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths))]
    marks = corpus.file.bits("sentence_starts", 0, corpus.num_tokens)
    assert np.array_equal(corpus.file.set_positions("sentence_starts"), np.flatnonzero(marks))


def test_a_long_document_is_encoded_in_pieces_without_a_seam(tmp_path, tokenizer, causal_tokenizer):
    text = " ".join(f"Red lamp {i} sings quietly.\n\nA heavy stone walks." for i in range(1500))
    path = tmp_path / "long.txt"
    path.write_text(text)
    for tok, columns in ((tokenizer, ("sentence_starts",)), (tokenizer, ()), (causal_tokenizer, ("word_starts",))):
        made = build_corpus([path], tok, cache_dir=tmp_path, columns=columns)
        assert document_ids(made, 0) == tok(text, add_special_tokens=False).input_ids


def test_special_tokens_written_in_the_text_stay_text(tmp_path, tokenizer, write_documents):
    path = write_documents(tmp_path / "t.jsonl", ["the [MASK] lamp [SEP] sings"])
    made = build_corpus([path], tokenizer, cache_dir=tmp_path)
    assert not {tokenizer.mask_token_id, tokenizer.sep_token_id} & set(document_ids(made, 0))


def test_a_tokenizer_that_pads_what_it_encodes_is_laid_out_like_any_other(tokenizer, corpus):
    padding = copy.deepcopy(tokenizer)
    padding.backend_tokenizer.enable_padding(length=32)
    padding.backend_tokenizer.enable_truncation(3)
    assert Corpus.open(corpus.file.path, padding).layout == corpus.layout


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    with CorpusWriter(tmp_path / "c.arrow", 70_000, ()) as writer:
        writer.append(np.array([69_999, 1]), {})
        writer.end_document()
        writer.commit("t", {})
    file = CorpusFile(tmp_path / "c.arrow")
    assert file.ids.dtype == np.uint32 and file.ids.tolist() == [69_999, 1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=4), min_size=1, max_size=6))
def test_whatever_is_written_is_read(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("w") / "c.arrow"
    with CorpusWriter(path, 100, ("odd",)) as writer:
        kept = []
        for parts in documents:
            for part in parts:
                ids = np.array(part, dtype=np.int64)
                writer.append(ids, {"odd": ids % 2 == 1})
            if writer.end_document():
                kept.append([i for part in parts for i in part])
        if not kept:
            return
        writer.commit("hash", {"a": 1})
    file = CorpusFile(path, "hash")
    file.verify()
    flat = [i for ids in kept for i in ids]
    assert [file.ids[a:b].tolist() for a, b in zip(file.offsets, file.offsets[1:], strict=False)] == kept
    for start in range(0, len(flat), 7):
        assert file.bits("odd", start, len(flat)).tolist() == [i % 2 == 1 for i in flat[start:]]
    assert os.listdir(path.parent) == ["c.arrow"]


def test_the_second_time_the_cache_is_used(tmp_path, tokenizer, write_documents, monkeypatch):
    path = write_documents(tmp_path / "t.jsonl", ["red lamp", "green stone sings"])
    first = build_corpus([path], tokenizer, cache_dir=tmp_path / "cache")

    def no_commit(*_):
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(CorpusWriter, "commit", no_commit)
        again = build_corpus([path], tokenizer, cache_dir=tmp_path / "cache")
        assert again.digest == first.digest and again.file.path == first.file.path
        for options in (
            {"columns": ["word_starts"]}, {"cleaning": CleaningOptions(min_chars=10)}, {"text_column": "text"},
            {"tokenizer": train_tokenizer(["other text"], vocab_size=300)},
        ):
            with pytest.raises(AssertionError, match="made again"):
                build_corpus([path], **{"tokenizer": tokenizer, "cache_dir": tmp_path / "cache", **options})
        write_documents(path, ["red lamp", "green stone walks"])
        with pytest.raises(AssertionError, match="made again"):
            build_corpus([path], tokenizer, cache_dir=tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == 1  # the failed ones left nothing behind


def test_the_digest_follows_the_text(tmp_path, tokenizer, write_documents):
    texts = [["red lamp", "green"], ["red", "lamp green"], ["red lamp", "green stone"]]
    made = [
        build_corpus([write_documents(tmp_path / f"{i}.jsonl", t)], tokenizer, cache_dir=tmp_path)
        for i, t in enumerate(texts)
    ]
    assert len({m.digest for m in made}) == 3
    same = build_corpus([write_documents(tmp_path / "same.jsonl", texts[0])], tokenizer, cache_dir=tmp_path)
    assert same.digest == made[0].digest


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "not arrow":
        data = bytearray(b"hello" * 100)
    elif how == "magic":
        data = data.replace(b"tunecore corpus", b"tunecore corpse")
    elif how == "version":
        data = data.replace(b'"version": 1', b'"version": 9')
    elif how == "not json":
        data = data.replace(b'{"magic"', b'["magic"')
    elif how == "dtype":
        data = data.replace(b'"dtype": "uint16"', b'"dtype": "uint32"')
    elif how == "lacks a key":
        data = data.replace(b'"digest"', b'"digezt"')
    assert how in ("truncated", "empty") or bytes(data) != path.read_bytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "damaged"), ("empty", "damaged"), ("not arrow", "damaged"), ("magic", "corpse"),
        ("version", "version 9"), ("not json", "header cannot be read"), ("dtype", "header says"),
        ("lacks a key", "lacks digest"),
    ],
)
def test_damage_is_noticed_and_the_corpus_made_again(tmp_path, tokenizer, write_documents, caplog, how, message):
    path = write_documents(tmp_path / "t.jsonl", ["red lamp", "green stone sings"])
    made = build_corpus([path], tokenizer, cache_dir=tmp_path)
    file, digest = Path(made.file.path), made.digest
    del made
    damage(file, how)
    with pytest.raises(DataError, match=rf"corpus '.*arrow'.*{message}[\s\S]*Delete the file"):
        Corpus.open(file, tokenizer)
    with caplog.at_level(logging.WARNING):
        again = build_corpus([path], tokenizer, cache_dir=tmp_path)
    assert again.digest == digest and "made again" in caplog.text


def test_a_changed_token_is_found_by_verify(tmp_path, tokenizer, write_documents):
    made = build_corpus([write_documents(tmp_path / "t.jsonl", ["red lamp"] * 9)], tokenizer, cache_dir=tmp_path)
    made.file.verify()
    file, ids = Path(made.file.path), made.file.ids.tobytes()
    data = file.read_bytes()
    at = data.index(ids)
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DataError, match="does not match its digest"):
        CorpusFile(file).verify()


def test_another_tokenizer_and_a_missing_file_are_named(corpus, tmp_path):
    other = train_tokenizer(["quite another text"], vocab_size=300)
    with pytest.raises(DataError, match="another tokenizer"):
        Corpus.open(corpus.file.path, other)
    with pytest.raises(DataError, match="no such file"):
        Corpus.open(tmp_path / "none.arrow", other)


def test_an_empty_corpus_says_why(tmp_path, tokenizer, write_documents):
    path = write_documents(tmp_path / "t.jsonl", ["ab", "", "  ", "abc"])
    with pytest.raises(DataError, match=r"no text is left: 4 rows of 1 files; skipped 2 text: empty .*2 too_short"):
        build_corpus([path], tokenizer, cache_dir=tmp_path / "c", cleaning=CleaningOptions(min_chars=10))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text is left: 0 rows of 1 files"):
        build_corpus([tmp_path / "empty.txt"], tokenizer, cache_dir=tmp_path / "c")
    assert os.listdir(tmp_path / "c") == []


def test_a_document_without_a_token_is_counted(tmp_path, tokenizer, write_documents):
    path = write_documents(tmp_path / "t.jsonl", ["red lamp", "\u0301\u0301", "stone"])
    made = build_corpus([path], tokenizer, cache_dir=tmp_path)
    assert (made.num_documents, made.summary["without_tokens"]) == (2, 1)


def test_bad_rows_are_in_the_summary_or_fatal(tmp_path, tokenizer):
    path = tmp_path / "t.csv"
    path.write_text("text\nred lamp\nNaN\n")
    made = build_corpus([path], tokenizer, cache_dir=tmp_path)
    assert made.summary["read"]["skipped"] == {"text: NaN": 1}
    assert json.loads(json.dumps(made.summary)) == made.summary
    with pytest.raises(DataError, match=r"t\.csv:3: text: NaN"):
        build_corpus([path], tokenizer, cache_dir=tmp_path / "other", on_bad_row="raise")


def test_unknown_columns_and_unwritable_folders_are_named(tmp_path, tokenizer, write_documents, monkeypatch):
    path = write_documents(tmp_path / "t.jsonl", ["red lamp"])
    with pytest.raises(ConfigError, match="no corpus has the column 'language'; there are: word_starts"):
        build_corpus([path], tokenizer, cache_dir=tmp_path, columns=["language"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device[\s\S]*data.cache_dir"):
        build_corpus([path], tokenizer, cache_dir=tmp_path / "full")
    assert os.listdir(tmp_path / "full") == []


def test_progress_is_shown_when_asked_for(tmp_path, tokenizer, write_documents, capsys):
    path = write_documents(tmp_path / "t.jsonl", ["red lamp"])
    build_corpus([path], tokenizer, cache_dir=tmp_path / "a")
    assert capsys.readouterr().out == ""
    build_corpus([path], tokenizer, cache_dir=tmp_path / "b", progress=True)
    assert "tokenising" in capsys.readouterr().out


def covered(corpus):
    spans = [np.arange(a, b) for a, b in zip(corpus.spans.start, corpus.spans.stop, strict=True)]
    return np.concatenate(spans)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_held_out_text_never_overlaps(corpus, fraction):
    train, held = corpus.split(fraction, seed=3)
    assert np.array_equal(np.sort(np.concatenate([covered(train), covered(held)])), np.arange(corpus.num_tokens))
    assert 0 < held.num_tokens <= 2 * fraction * corpus.num_tokens + 60
    assert "of 40 documents held out" in train.note == train.summary["note"] and train.note.startswith("training")
    assert not set(train.spans.document) & set(held.spans.document)
    again = corpus.split(fraction, seed=3)[1]
    assert again.digest == held.digest != train.digest != corpus.digest
    if fraction >= 0.1:
        assert corpus.split(fraction, seed=4)[1].digest != held.digest


@pytest.mark.parametrize("count", [1, 3])
def test_few_long_documents_give_a_block_each(tmp_path, tokenizer, write_documents, count):
    texts = [" ".join(f"The red lamp {i} sings." for i in range(400)) for _ in range(count)]
    made = build_corpus([write_documents(tmp_path / "t.jsonl", texts)], tokenizer, cache_dir=tmp_path,
                        columns=["sentence_starts"])
    train, held = made.split(0.1, seed=0)
    assert f"one block of each of {count} documents" in held.note
    assert np.array_equal(np.sort(np.concatenate([covered(train), covered(held)])), np.arange(made.num_tokens))
    assert held.num_tokens == pytest.approx(0.1 * made.num_tokens, abs=count)
    for part in (train, held):
        rows = [part.rows("pair", 32)[i] for i in range(len(part.rows("pair", 32)))]
        tokens = np.concatenate([made.file.offsets[r.document] + r.start + np.arange(len(r.ids)) for r in rows])
        assert np.array_equal(np.sort(tokens), np.sort(covered(part)))


def test_splits_that_cannot_be_are_refused(tmp_path, corpus, tokenizer, write_documents):
    for fraction in (0.0, 1.0):
        with pytest.raises(ConfigError, match="eval_fraction"):
            corpus.split(fraction, 0)
    one = build_corpus([write_documents(tmp_path / "t.jsonl", ["."])], tokenizer, cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"one token[\s\S]*data.eval"):
        one.split(0.1, 0)
    two = build_corpus([write_documents(tmp_path / "u.jsonl", [". ."])], tokenizer, cache_dir=tmp_path)
    assert [c.num_tokens for c in two.split(0.01, 0)] == [1, 1]


def test_a_corpus_file_travels_to_other_processes_by_name(corpus):
    again = pickle.loads(pickle.dumps(corpus.file))
    assert np.array_equal(again.ids, corpus.file.ids) and again.header == corpus.file.header


def test_the_tokenizer_hash_is_in_the_header(corpus, tokenizer):
    assert corpus.file.header["tokenizer"] == tokenizer_hash(tokenizer)


def test_real_text_with_a_published_tokenizer(shared_data, tmp_path):
    gpt2 = load_tokenizer(shared_data / "tokenizers" / "gpt2_bpe_encoder.json")
    made = build_corpus([shared_data / "text" / "wikitext-2" / "valid.txt"], gpt2, cache_dir=tmp_path)
    assert made.num_documents == 1 and 230_000 < made.num_tokens < 280_000
    text = gpt2.decode(made.file.ids[:300].astype(int).tolist())
    assert text.startswith("= Homarus gammarus =")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hundred_novels_stay_below_a_gigabyte(shared_data, tmp_path):
    script = Path(__file__).with_name("novels_memory.py")
    vocabulary = shared_data / "tokenizers" / "bert_base_uncased_vocab.txt"
    arguments = [vocabulary, shared_data / "text" / "english_novels_100.zip"]
    made = subprocess.run(
        [sys.executable, script, *arguments, tmp_path], capture_output=True, text=True, check=True
    )
    figures = json.loads(made.stdout.strip().splitlines()[-1])
    print(figures)
    assert "tokenising" in made.stdout
    assert figures["documents"] == 100 and figures["tokens"] > 15_000_000
    assert figures["peak_mb"] < 1024
