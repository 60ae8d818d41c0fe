"""Rows to examples: columns, prefix, lengths, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tunecore.config import RunConfig
from tunecore.data.rows import TaskRows
from tunecore.errors import ConfigError, DataError
from tunecore.heads.seq2seq import Seq2Seq, Seq2SeqOptions
from tunecore.inputs import head_records
from tunecore.models.families.builtin import FAMILIES
from tunecore.plugins import load_plugins
from tunecore.testing import make_model, make_tokenizer
from tunecore.types import Generated, Head, Progress, Record


@pytest.fixture(scope="module", params=["t5", "bart"])
def tokenizer(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def t5():
    return make_tokenizer("t5")


def head(**options):
    return Seq2Seq(Seq2SeqOptions(**options))


def record(**fields):
    return Record(fields, "rows.jsonl", 4)


def test_the_decoder_reads_the_labels_one_place_later(tokenizer):
    ours = head(prefix="translate: ")
    assert isinstance(ours, Head)
    row = record(text="The river", target="A small boat")
    (example,) = ours.examples(row, 7, tokenizer, 32, labelled=True)
    assert example.row_id == 7
    assert example.input_ids.tolist() == tokenizer("translate: The river").input_ids
    labels = tokenizer("A small boat").input_ids
    targets = example.targets["seq2seq"]
    assert targets.labels.tolist() == labels and labels[-1] == tokenizer.eos_token_id
    assert targets.index.tolist() == list(range(len(labels)))
    start = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.eos_token_id
    assert example.decoder_input_ids.tolist() == [start, *labels[:-1]]
    (bare,) = ours.examples(row, 7, tokenizer, 32, labelled=False)
    assert bare.targets == {} and bare.decoder_input_ids.tolist() == [start]
    assert ours.prompt(row, tokenizer, 32).tolist() == example.input_ids.tolist()


@pytest.mark.parametrize(
    ("options", "fields", "source", "target"),
    [
        ({}, {"text": "a", "target": "b"}, "a", "b"),
        ({}, {"target": "b", "text": "a", "id": "3"}, "a", "b"),
        ({}, {"en": "a", "de": "b"}, "a", "b"),
        ({}, {"text": "a", "summary": "b"}, "a", "b"),
        ({"source": "de", "target": "en"}, {"en": "a", "de": "b"}, "b", "a"),
        ({"source": "de"}, {"en": "a", "de": "b"}, "b", "a"),
        ({"target": "en"}, {"en": "a", "de": "b"}, "b", "a"),
        ({"source": "doc", "target": "short"}, {"id": "1", "doc": ["a", "b"], "short": ["c", "d"]}, "a b", "c"),
    ],
)
def test_columns_are_found_as_the_options_say(t5, options, fields, source, target):
    ours, row = head(**options), record(**fields)
    assert ours.reject(row, labelled=True) is None
    (example,) = ours.examples(row, 0, t5, 32, labelled=True)
    assert example.input_ids.tolist() == t5(source).input_ids
    assert example.targets["seq2seq"].labels.tolist() == t5(target).input_ids
    assert ours.references(row)[0] == target


def test_several_right_targets_are_all_references():
    assert head().references(record(text="a", target=["b", "c"])) == ["b", "c"]


def test_what_is_too_long_is_cut_with_its_end_token_and_counted(t5, caplog):
    long = "The river carries the quiet town. " * 3
    ours = head(max_source_length=6, max_target_length=5)
    rows = TaskRows([record(text=long, target=long), record(text="a", target="b")], ours, t5, 16)
    (example,) = rows.examples(0, 0, Progress(0, 1, 0.0, 1.0))
    assert rows.views == ("seq2seq",)
    assert (len(example.input_ids), len(example.decoder_input_ids)) == (6, 5)
    assert example.input_ids[-1] == t5.eos_token_id == example.targets["seq2seq"].labels[-1]
    assert "seq2seq: sources cut to 6 tokens: 1; targets cut to 5 tokens: 1" in caplog.text
    assert ours.row_notes() is None
    assert ours.generation.max_new_tokens == 5 and head(max_new_tokens=9).generation.max_new_tokens == 9


def test_stored_rows_give_back_what_the_head_made(t5):
    row = record(text="The river", target="A small boat")
    (stored,) = TaskRows([row], head(), t5, 16).examples(0, 0, Progress(0, 1, 0.0, 1.0))
    (made,) = head().examples(row, 0, t5, 16, labelled=True)
    for name in ("input_ids", "decoder_input_ids"):
        assert getattr(stored, name).dtype == np.int64
        assert getattr(stored, name).tolist() == getattr(made, name).tolist()


def test_a_file_with_bad_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"text": "a", "target": "b"}, {"text": "a"}, {"text": "", "target": "b"}, {"text": "a", "target": []}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    registry = load_plugins(RunConfig().plugins).registry
    kept, summary = head_records([str(path)], head(), RunConfig(), registry)
    assert [r.row for r in kept] == [1]
    assert summary.skipped == {"target: missing": 1, "text: empty": 1, "target: empty list": 1}
    path.write_text('{"title": "a", "body": "b", "target": "c"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: there is no column 'text'; columns found: title, body, target"):
        head_records([str(path)], head(), RunConfig(), registry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_source_length": 1}, "seq2seq.max_source_length is 1"),
        ({"label_smoothing": 1.0}, "seq2seq.label_smoothing is 1"),
        ({"num_beams": 0}, "seq2seq.num_beams is 0"),
        ({"num_beams": 2, "temperature": 0.5}, "seq2seq: beams and drawing"),
        ({"top_p": 0.0}, "seq2seq.top_p is 0"),
        ({"repetition_penalty": 0.0}, "seq2seq.repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "seq2seq.max_new_tokens is 0"),
        ({"generate_rows": 0}, "seq2seq.generate_rows is 0"),
        ({"metrics": ("accuracy",)}, "seq2seq.metrics: unknown metric 'accuracy'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


def test_lengths_beyond_the_run_and_texts_that_are_none_are_named(t5):
    with pytest.raises(ConfigError, match=r"max_target_length is 64, but data.max_length is 32"):
        head(max_target_length=64).examples(record(text="a", target="b"), 0, t5, 32, labelled=True)
    with pytest.raises(DataError, match=r"rows.jsonl:4: column 'target' holds no text: int, not text"):
        head().examples(record(text="a", target=3), 0, t5, 32, labelled=True)


def test_models_that_do_not_fit_are_refused(t5):
    bert = make_model(["masked_lm"], make_tokenizer("bert"))
    with pytest.raises(ConfigError, match="seq2seq needs an encoder-decoder model; bert has one stack"):
        head().build(bert, FAMILIES["bert"])
    bart = make_model(["denoising"], make_tokenizer("bart"), "bart")
    ours = head()
    ours.examples(record(text="a", target="b"), 0, t5, 32, labelled=True)
    with pytest.raises(ConfigError, match=r"starts the decoder with the pad token .* made to start with 2"):
        ours.build(bart, FAMILIES["bart"])
    with pytest.raises(ConfigError, match="max_new_tokens is 99, but the decoder's positions end at 32"):
        head(max_new_tokens=99).build(bart, FAMILIES["bart"])


def test_what_chooses_the_best():
    assert head().default_metric == "bleu" and head(metrics=("rouge", "bleu")).default_metric == "rouge1"
    assert head(generate=False).default_metric == head(metrics=()).default_metric == "-loss"
    assert head(generate=False).generate_rows == 0 and head().generate_rows == 200


def test_decode_gives_the_text():
    prediction = head().decode([Generated(" ein Haus ", (3, 4))], None, 5)
    assert (prediction.label, prediction.row_id) == ("ein Haus", 5)
