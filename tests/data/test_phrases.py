"""Phrases: found as plain Python finds them, kept beside the corpus, and part of its digest."""

from __future__ import annotations

import logging
import math
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data import phrase_columns, phrases
from tunecore.data.corpus import build_corpus
from tunecore.data.phrase_columns import COLUMNS, phrase_options, token_entries, with_phrases, word_tokens
from tunecore.data.phrases import Block, Collocations, Lexicon, Marks, PhraseOptions
from tunecore.data.tokenizer import load_tokenizer, train_tokenizer
from tunecore.errors import ConfigError, DataError


def block_of(documents):
    """A block of documents of words of ids."""
    ids = [i for words in documents for word in words for i in word]
    starts = [p == 0 for words in documents for word in words for p in range(len(word))]
    opens = [w == 0 and p == 0 for words in documents for w, word in enumerate(words) for p in range(len(word))]
    return Block(np.array(ids, dtype=np.int64), np.array(starts, dtype=bool), np.array(opens, dtype=bool))


def spans(marks):
    """[first, stop) of every phrase."""
    found = []
    for at in np.flatnonzero(marks.starts).tolist():
        stop = at + 1
        while stop < len(marks.members) and marks.members[stop] and not marks.starts[stop]:
            stop += 1
        assert marks.members[at:stop].all()
        found.append((at, stop))
    assert sum(b - a for a, b in found) == marks.members.sum()
    return found


words = st.lists(st.integers(0, 5), min_size=1, max_size=2).map(tuple)
documents = st.lists(st.lists(words, min_size=1, max_size=14), min_size=1, max_size=4)


@settings(max_examples=120, deadline=None)
@given(documents, st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=8))
def test_a_list_is_found_in_whole_words_longest_first(texts, entries):
    flat = [tuple(i for word in entry for i in word) for entry in entries]
    expected, offset = [], 0
    for text in texts:
        edges = np.cumsum([0, *map(len, text)]).tolist()
        ids = tuple(i for word in text for i in word)
        w = 0
        while w < len(text):
            fits = [v for v in range(len(text), w, -1) if ids[edges[w] : edges[v]] in flat]
            if fits:
                expected.append((offset + edges[w], offset + edges[fits[0]]))
            w = fits[0] if fits else w + 1
        offset += len(ids)
    assert spans(Lexicon(flat).find(block_of(texts))) == expected


def plain_collocations(texts, is_word, options):
    """The same by dicts and loops: texts as lists of phrases, each a tuple of words."""
    units = [[(word,) for word in text] for text in texts]

    def joins(unit):
        return any(is_word[i] for word in unit for i in word)

    for _ in range(2):
        singles = Counter(u for text in units for u in text if joins(u))
        pairs = Counter((a, b) for t in units for a, b in pairwise(t) if joins(a) and joins(b))
        total = singles.total()
        strong = set()
        for (a, b), count in pairs.items():
            together = min(count / total, 1 - 1e-12)
            npmi = math.log(count * total / (singles[a] * singles[b])) / -math.log(together)
            if count >= options.min_count and npmi >= options.min_npmi:
                strong.add((a, b))
        merged = []
        for text in units:
            new, at = [], 0
            while at < len(text):
                pair = tuple(text[at : at + 2])
                new.append(pair[0] + pair[1] if pair in strong else text[at])
                at += 2 if pair in strong else 1
            merged.append(new)
        units = merged
    found, at = [], 0
    for text in units:
        for unit in text:
            size = sum(map(len, unit))
            if len(unit) > 1:
                found.append((at, at + size))
            at += size
    return found


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.lists(words, min_size=1, max_size=30), min_size=1, max_size=4), st.integers(2, 4),
    st.sampled_from([-0.5, 0.01, 0.21, 0.43]),
)  # fmt: skip
def test_collocations_are_those_of_plain_counting(texts, min_count, min_npmi):
    is_word = np.array([True, True, True, True, True, False])
    options = PhraseOptions(min_count=min_count, min_npmi=min_npmi)
    block = block_of(texts)
    found = spans(Collocations(lambda: iter([block]), is_word, options).find(block))
    assert found == plain_collocations(texts, is_word, options)


def test_counts_are_the_same_over_many_blocks_and_rare_pairs_go_when_there_are_too_many(monkeypatch):
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 300, 500).astype(np.uint64) for _ in range(20)]
    monkeypatch.setattr(phrases, "BLOCK", 600)
    counts = phrases._Counts()
    for part in parts:
        counts.add(part)
    keys, found = counts.table()
    expected = Counter(np.concatenate(parts).tolist())
    assert dict(zip(keys.tolist(), found.tolist(), strict=True)) == dict(expected)
    assert counts.of(np.array([7, 999], dtype=np.uint64)).tolist() == [expected[7], 1] and counts.total == 10_000
    monkeypatch.setattr(phrases, "LARGEST_TABLE", 100)
    few = phrases._Counts()
    common = np.arange(50, dtype=np.uint64)
    for part in parts:
        few.add(np.concatenate([*[common] * 4, part + np.uint64(1000)]))
    kept, values = few.table()
    assert len(kept) <= 100 and set(common.tolist()) <= set(kept.tolist())
    assert values[: len(common)].tolist() == [80] * 50


# Beside a corpus

TEXTS = [
    "The red lamp of New York sings. A heavy stone walks under New York and over San Marino.",
    "New York is far. San Marino is near; a red river runs. The heavy lamp in New York walks.",
] * 6


@pytest.fixture
def corpus(tmp_path, write_documents):
    path = write_documents(tmp_path / "t.jsonl", TEXTS)
    tokenizer = train_tokenizer(TEXTS, vocab_size=330)
    made = build_corpus([path], tokenizer, cache_dir=tmp_path, columns=["word_starts", "sentence_starts"])
    return made, tokenizer


def spelt(corpus, tokenizer, kind):
    ids = corpus.file.ids
    marks = Marks(*(corpus.file.bits(f"{kind}_{part}", 0, len(ids)) for part in ("starts", "members")))
    return Counter(tokenizer.decode(ids[a:b].astype(int).tolist()) for a, b in spans(marks))


def test_lists_and_statistics_come_together(corpus, tmp_path):
    made, tokenizer = corpus
    (tmp_path / "names.txt").write_text("San Marino\nNew York\n")
    (tmp_path / "phrases.txt").write_text("heavy stone walks\nthe red\nred lamp\n")
    lists = {"phrases": str(tmp_path / "phrases.txt"), "entities": str(tmp_path / "names.txt")}
    listed = with_phrases(made, tokenizer, PhraseOptions(**lists, collocations=False))
    assert spelt(listed, tokenizer, "entity") == {"new york": 24, "san marino": 12}
    assert spelt(listed, tokenizer, "phrase") == {"heavy stone walks": 6, "the red": 6}
    found = with_phrases(made, tokenizer, PhraseOptions(min_count=10, min_npmi=0.6))
    assert {"new york", "san marino"} <= set(spelt(found, tokenizer, "phrase"))
    assert not spelt(found, tokenizer, "entity")
    both = with_phrases(made, tokenizer, PhraseOptions(**lists, min_count=10, min_npmi=0.6))
    assert {"heavy stone walks", "the red", "new york"} <= set(spelt(both, tokenizer, "phrase"))
    assert listed.digest != found.digest != both.digest != made.digest


def test_phrases_are_made_once_and_travel_with_the_file(corpus, monkeypatch, caplog):
    made, tokenizer = corpus
    options = PhraseOptions(min_count=10, min_npmi=0.6)
    first = with_phrases(made, tokenizer, options)
    content = Path(first.file.side.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(phrase_columns, "_write", None)  # would raise if it were called
        again = with_phrases(made, tokenizer, options)
        with pytest.raises(TypeError):
            with_phrases(made, tokenizer, PhraseOptions(min_count=11, min_npmi=0.6))
    other = pickle.loads(pickle.dumps(again.file))
    assert other.columns == first.file.columns == (*made.file.columns, *COLUMNS)
    assert np.array_equal(other.bits("phrase_starts", 3, 60), first.file.bits("phrase_starts", 3, 60))
    assert again.digest == first.digest
    for damage in (content[:50], b"", content[:-8]):
        Path(first.file.side.path).write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            with_phrases(made, tokenizer, options)
        assert Path(first.file.side.path).read_bytes() == content and "made again" in caplog.text
        caplog.clear()


def test_parts_and_rows_of_the_corpus_carry_the_columns(corpus):
    made, tokenizer = corpus
    train, held = made.split(0.3, seed=1)
    options = PhraseOptions(min_count=10, min_npmi=0.6)
    whole, part = with_phrases(made, tokenizer, options), with_phrases(train, tokenizer, options)
    assert part.file.side == whole.file.side and part.num_tokens == train.num_tokens and part.note == train.note
    assert part.digest not in (train.digest, with_phrases(held, tokenizer, options).digest)
    rows = whole.rows("document", 12)
    example = rows.add_special(rows[1])
    assert set(example.columns) == {"special", "word_starts", "sentence_starts", *COLUMNS}
    assert not example.columns["phrase_starts"][[0, -1]].any() and example.columns["word_starts"][1]
    at = int(whole.spans.start[0]) + rows[1].start
    bits = whole.file.bits("phrase_members", at, at + len(rows[1].ids))
    assert np.array_equal(rows[1].columns["phrase_members"], bits)
    starts = whole.file.bits("phrase_starts", at, at + len(rows[1].ids))
    assert np.array_equal(rows[1].columns["phrase_starts"], starts)  # the cut of a row starts no phrase


def test_blocks_change_nothing_but_at_their_edges(corpus, tmp_path, monkeypatch):
    made, tokenizer = corpus
    (tmp_path / "names.txt").write_text("San Marino\nNew York\n")
    options = PhraseOptions(entities=str(tmp_path / "names.txt"), collocations=False)
    whole = with_phrases(made, tokenizer, options)
    monkeypatch.setattr(phrase_columns, "BLOCK", 64)
    monkeypatch.setattr(phrase_columns, "_VERSION", -1)  # another file
    cut = with_phrases(made, tokenizer, options)
    assert cut.file.side != whole.file.side and made.num_tokens > 256
    count = made.num_tokens
    one, other = (c.file.bits("entity_members", 0, count) for c in (whole, cut))
    near = np.abs((np.flatnonzero(one != other) + 32) % 64 - 32)
    assert (near <= 3).all() and sum(spelt(cut, tokenizer, "entity").values()) >= 36 - made.num_tokens // 64


def test_byte_level_entries_are_found_after_a_space_and_at_the_beginning(tmp_path, write_documents):
    texts = ["New York is far. We saw New York", "中国的首都是北京。北京大学"]
    tokenizer = train_tokenizer(texts * 3, vocab_size=420, family="roberta")
    path = write_documents(tmp_path / "t.jsonl", texts)
    (tmp_path / "names.txt").write_text("New York\n北京大学\n首都\n")
    made = build_corpus([path], tokenizer, cache_dir=tmp_path, columns=["word_starts"])
    found = with_phrases(made, tokenizer, PhraseOptions(entities=str(tmp_path / "names.txt"), collocations=False))
    counts = spelt(found, tokenizer, "entity")
    assert counts["New York"] + counts[" New York"] == 2


def test_words_are_told_from_punctuation_and_special_tokens(shared_data):
    for name, yes, no in (
        ("bert_base_uncased_vocab.txt", ["the", "##ing", "1"], [".", ",", "[MASK]", "“"]),
        ("gpt2_bpe_encoder.json", ["Ġthe", "ing", "Ã", "1"], [".", "Ġ,", "<|endoftext|>"]),
    ):
        tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
        table = word_tokens(tokenizer)
        assert all(table[tokenizer.convert_tokens_to_ids(t)] for t in yes)
        assert not any(table[tokenizer.convert_tokens_to_ids(t)] for t in no)


def test_entries_the_tokenizer_does_not_know_are_left_out_and_said(corpus, caplog):
    _, tokenizer = corpus
    with caplog.at_level(logging.WARNING):
        entries = token_entries(["New York", "Ω Ψ"], tokenizer, "entities")
    assert tokenizer.unk_token_id not in {i for entry in entries for i in entry}
    assert "1 of 2 entities hold characters" in caplog.text


def test_mistakes_are_named(corpus, tmp_path):
    made, tokenizer = corpus
    with pytest.raises(DataError, match=r"phrase_masked_lm\.phrases '.*none\.txt': cannot be read"):
        with_phrases(made, tokenizer, PhraseOptions(phrases=str(tmp_path / "none.txt")))
    bare = build_corpus([tmp_path / "t.jsonl"], tokenizer, cache_dir=tmp_path)
    with pytest.raises(DataError, match="made without word_starts"):
        with_phrases(bare, tokenizer, PhraseOptions())
    for name, value in (("min_count", 1), ("min_npmi", 1.5), ("min_npmi", -1.0)):
        with pytest.raises(ConfigError, match=name):
            PhraseOptions(**{name: value})
    one, other = (type("One", (), {"phrase_options": PhraseOptions(min_count=n)})() for n in (5, 6))
    assert phrase_options([one, object(), one]) == [PhraseOptions(min_count=5)]
    with pytest.raises(ConfigError, match="different phrases"):
        phrase_options([one, other])


def test_progress_is_shown_when_asked_for(corpus, capsys):
    made, tokenizer = corpus
    with_phrases(made, tokenizer, PhraseOptions(min_count=3))
    assert capsys.readouterr().out.strip() == ""
    with_phrases(made, tokenizer, PhraseOptions(min_count=4), progress=True)
    assert "finding phrases" in capsys.readouterr().out
