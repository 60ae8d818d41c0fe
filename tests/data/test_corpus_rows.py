"""Rows: every token in one row, within the limit, cut at sentences where asked; special tokens as the tokenizer's."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.corpus import build_corpus
from tunecore.data.corpus_file import CorpusFile, CorpusWriter
from tunecore.data.corpus_rows import CorpusRows, Spans
from tunecore.data.special_layout import SpecialLayout
from tunecore.data.tokenizer import train_tokenizer
from tunecore.errors import ConfigError, DataError


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6),
    st.sampled_from(["document", "sentence", "pair"]), st.integers(6, 40),
)
def test_rows_hold_every_token_once_and_keep_their_rules(tmp_path_factory, tokenizer, documents, unit, max_length):
    path = tmp_path_factory.mktemp("r") / "c.arrow"
    with CorpusWriter(path, 320, ("sentence_starts",)) as writer:
        for sentences in documents:
            for length in sentences:
                writer.append(np.arange(length), {"sentence_starts": np.arange(length) == 0})
            writer.end_document()
        writer.commit("t", {})
    file, layout = CorpusFile(path), SpecialLayout.of(tokenizer)
    rows = CorpusRows(file, layout, Spans.of_documents(file.offsets), unit, max_length)
    budget = max_length - (3 if unit == "pair" else 2)
    chunks = [rows[i] for i in range(len(rows))]
    positions = [file.offsets[c.document] + c.start + np.arange(len(c.ids)) for c in chunks]
    assert np.array_equal(np.concatenate(positions), np.arange(len(file.ids)))
    starts = set(file.set_positions("sentence_starts").tolist())
    for n, (chunk, at) in enumerate(zip(chunks, positions, strict=True)):
        assert chunk.row_id == n and 0 < len(chunk.ids) <= budget
        assert file.offsets[chunk.document] <= at[0] and at[-1] < file.offsets[chunk.document + 1]
        marks = np.flatnonzero(chunk.columns["sentence_starts"])
        assert marks[0] == 0
        if unit == "document":
            continue
        pieces = np.diff(np.append(marks, len(chunk.ids)))
        assert pieces.max() <= (budget // 2 if unit == "pair" else budget)
        last_of_document = at[-1] + 1 == file.offsets[chunk.document + 1]
        if not last_of_document:
            following = chunks[n + 1].columns["sentence_starts"]
            first_piece = np.flatnonzero(np.append(following[1:], True))[0] + 1
            assert len(chunk.ids) + first_piece > budget  # greedy: the next piece would not have fitted
            assert unit != "pair" or len(pieces) >= 2
        assert {int(p) for p in at if int(p) in starts} <= {int(at[m]) for m in marks}


def test_special_tokens_are_laid_out_as_the_tokenizer_does(corpus, tokenizer):
    rows = corpus.rows("pair", 32)
    first, second = rows[0], rows[len(rows) - 1]
    single, pair = rows.add_special(first), rows.add_special(first, second)
    def text(chunk):
        return tokenizer.decode(chunk.ids)

    assert single.input_ids.tolist() == tokenizer(text(first)).input_ids
    expected = tokenizer(text(first), text(second))
    assert pair.input_ids.tolist() == expected.input_ids
    assert pair.token_type_ids.tolist() == expected.token_type_ids and single.token_type_ids is None
    assert pair.row_id == first.row_id and set(pair.columns) == {"special", "word_starts", "sentence_starts"}
    is_special = np.isin(pair.input_ids, [tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert np.array_equal(pair.columns["special"], is_special) and is_special.sum() == 3
    assert pair.columns["word_starts"][is_special].all() and not pair.columns["sentence_starts"][is_special].any()
    assert np.array_equal(pair.columns["word_starts"][1 : 1 + len(first.ids)], first.columns["word_starts"])
    assert (rows.cls_id, rows.sep_id, rows.mask_id, rows.pad_id) == (2, 3, 4, 0) and rows.vocab_size == len(tokenizer)


@pytest.mark.parametrize(("family", "has_segments"), [("roberta", False), ("distilbert", False), ("electra", True)])
def test_each_family_has_its_layout(corpus, family, has_segments):
    tokenizer = train_tokenizer(["red lamps sing"] * 2, vocab_size=400, family=family)
    layout = SpecialLayout.of(tokenizer)
    rows = CorpusRows(corpus.file, layout, corpus.spans, "document", 32)
    pair = rows.add_special(rows[0]._replace(ids=np.array([7, 8])), rows[1]._replace(ids=np.array([9])))
    a, b = ([7, 8], [9])
    ids = tokenizer.backend_tokenizer.post_process(
        tokenizer.backend_tokenizer.encode("a", add_special_tokens=False),
        tokenizer.backend_tokenizer.encode("b", add_special_tokens=False),
    ).ids
    assert pair.input_ids.tolist() == [ids[0], *a, *ids[2:-2], *b, ids[-1]]
    assert (pair.token_type_ids is not None) == has_segments == layout.has_segments


def test_gpt2_gets_end_of_text_only_where_documents_begin_and_end(tmp_path, causal_tokenizer, write_documents):
    texts = ["red lamp sings quietly under the heavy stone", "green river"]
    path = write_documents(tmp_path / "t.jsonl", texts)
    rows = build_corpus([path], causal_tokenizer, cache_dir=tmp_path).rows("document", 8)
    end = causal_tokenizer.eos_token_id
    examples = [rows.add_special(rows[i]) for i in range(len(rows))]
    assert len(examples) > 2 and all(len(e) <= 8 for e in examples)
    flat = [t for e in examples for t in e.input_ids.tolist()]
    ids = [causal_tokenizer(t).input_ids for t in texts]
    assert flat == [end, *ids[0], end, end, *ids[1], end]
    assert [bool(s) for e in examples for s in e.columns["special"]] == [t == end for t in flat]
    pair = rows.add_special(rows[len(rows) - 1], rows[0])
    assert pair.input_ids.tolist()[: len(ids[1]) + 2] == [end, *ids[1], end]


def test_rows_past_the_end_and_bad_units_are_refused(corpus, tmp_path, tokenizer, write_documents):
    rows = corpus.rows("document", 16)
    with pytest.raises(IndexError):
        rows[len(rows)]
    with pytest.raises(ConfigError, match=r"unknown unit 'sentense'.*Did you mean 'sentence'"):
        corpus.rows("sentense", 16)
    with pytest.raises(ConfigError, match="max_length is 4; 3 special tokens leave no room"):
        corpus.rows("pair", 4)
    plain = build_corpus([write_documents(tmp_path / "t.jsonl", ["red lamp"])], tokenizer, cache_dir=tmp_path)
    with pytest.raises(DataError, match="made without sentence_starts"):
        plain.rows("pair", 16)


def test_rows_travel_to_spawned_workers(corpus):
    rows = corpus.rows("pair", 24)
    again = pickle.loads(pickle.dumps(rows))
    assert len(again) == len(rows) and again[3].ids.tolist() == rows[3].ids.tolist()


def test_rows_may_be_longer_than_the_examples_made_of_them(corpus):
    rows = corpus.rows("document", 16, 24)
    assert rows.max_length == 16
    assert max(len(rows[i].ids) for i in range(len(rows))) == 22  # 24 with two special tokens
    same = corpus.rows("document", 16, 16)
    assert [len(same[i].ids) for i in range(len(same))] == [
        len(corpus.rows("document", 16)[i].ids) for i in range(len(same))
    ]
