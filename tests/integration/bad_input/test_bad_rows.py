"""Labels, texts and tokenizers that do not go with the run: one typed error that names row, option or token."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from tunecore import Engine
from tunecore.errors import ConfigError, DataError, TunecoreError

pytestmark = pytest.mark.timeout(60)


def rows(*labels, text="this film is fine number {}"):
    return [{"text": text.format(n), "label": label} for n, label in enumerate(labels)]


NAMES = ("pos", "neg", "pos", "neg")
MULTI = {"multi_label_classification": {}}
GIVEN = {"sequence_classification": {"labels": ["neg", "pos"]}}
LABELS = {
    "all the same": (rows(*["pos"] * 4), {}, r"every training row has the label 'pos' \(column 'label' of .*\n.*two"),
    "none": (rows(*[None] * 4), {}, r"train.jsonl:1: the label \(column 'label'\) is missing"),
    "NaN": (rows(*NAMES, math.nan), {}, r"train.jsonl:5: the label \(column 'label'\) is missing"),
    "blank": (rows(*NAMES, "  "), {}, r"train.jsonl:5: the label \(column 'label'\) is missing"),
    "a list": (rows(*NAMES, ["pos"]), {}, r"train.jsonl:5: the label .* is \['pos'\]; it must be a name or a whole"),
    "a fraction": (rows(*NAMES, 0.5), {}, r"train.jsonl:5: the label .* is 0.5; it must be a name or a whole number"),
    "an infinity": (rows(*NAMES, math.inf), {}, r"train.jsonl:5: the label .* is inf; it must be a name or a whole"),
    "an object": (rows(*NAMES, {"a": 1}), {}, r"train.jsonl:5: the label .* is {'a': 1}; it must be a name"),
    "out of the list": (rows(*NAMES, "odd"), {"head": GIVEN}, r"train.jsonl:5: unknown label 'odd' .*known: neg, pos"),
    "a number out of the list": (rows(0, 1, 2), {"head": GIVEN}, r"train.jsonl:3: unknown label '2' .*known: neg, pos"),
    "a list of one": (
        rows(*NAMES), {"head": {"sequence_classification": {"labels": ["pos"]}}}, r"labels of .* has 1 names; at least",
    ),
    "a list with one twice": (
        rows(*NAMES), {"head": {"sequence_classification": {"labels": ["a", "b", "a"]}}}, r"labels of .* names a more",
    ),
    "weights of other labels": (
        rows(*NAMES), {"head": {"sequence_classification": {"labels": ["neg", "pos"], "class_weights": [1.0]}}},
        r"class_weights has 1 weights, but the option labels names 2",
    ),
    "an unseen label to evaluate": (
        rows(*NAMES), {"eval": rows("pos", "odd")}, r"eval.jsonl:2: unknown label 'odd' \(column 'label'\); known",
    ),
    "an unseen label to test": (
        rows(*NAMES), {"test": rows("pos", "odd")}, r"test.jsonl:2: unknown label 'odd' \(column 'label'\); known",
    ),
    "another column": (
        rows(*NAMES), {"head": {"sequence_classification": {"label": "stars"}}}, r"no column 'stars'; columns found: t",
    ),
    "names for regression": (rows(*NAMES), {"head": "regression"}, r"train.jsonl:1: the number .* is 'pos', whi"),
    "NaN for regression": (rows(1.0, math.nan), {"head": "regression"}, r"train.jsonl:2: the number .* is nan; it"),
    "infinity for regression": (rows(1.0, math.inf), {"head": "regression"}, r"train.jsonl:2: the number .* is inf; i"),
    "a number too large for regression": (
        rows(1.0, int("9" * 400)), {"head": "regression"}, r"train.jsonl:2: the number .* has too many digits",
    ),
    "all the same for regression": (rows(2, 2), {"head": "regression"}, r"every training row has 2.0 in .*learn"),
    "other numbers of numbers": (rows([1, 2], [1]), {"head": "regression"}, r"train.jsonl:2: .*1 numbers?"),
    "a number out of its range": (
        rows(0, 9), {"head": {"regression": {"min": 0, "max": 5}}}, r"train.jsonl:2: .*9.0.*5",
    ),
    "a range of nothing": (rows(0, 9), {"head": {"regression": {"min": 5, "max": 5}}}, r"regression.*min.*max"),
    "no list for several labels": (rows({}, {}), {"head": MULTI}, r"train.jsonl:1: .*label"),
    "no tags": (rows(*NAMES), {"head": "token_classification"}, r"no column 'tokens'"),
    "fewer tags than words": (
        [{"tokens": ["a", "b"], "tags": ["O"]}], {"head": "token_classification"},
        r"1 tags: another number than tokens .*train.jsonl:1",
    ),
    "an answer that is not there": (
        [{"question": "who", "context": "a man", "answers": {"text": ["dog"], "answer_start": [2]}}],
        {"head": "extractive_qa"}, r"answers: the context has another text at answer_start .*train.jsonl:1",
    ),
    "an answer of another kind": (
        [{"question": "who", "context": "a man", "answers": 3}], {"head": "extractive_qa"},
        r"1 answers: neither SQuAD.s list nor .*train.jsonl:1",
    ),
    "one choice": (
        [{"question": "q", "choices": ["a"], "label": 0}], {"head": "multiple_choice"}, r"train.jsonl:1.*choice",
    ),
    "a choice that is not there": (
        [{"question": "q", "choices": ["a", "b"], "label": 7}], {"head": "multiple_choice"}, r"train.jsonl:1.*7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_are_named_with_their_row(finetune, case):
    train, options, message = LABELS[case]
    with pytest.raises(TunecoreError, match=message):
        finetune(train, **options)


def test_mixed_kinds_of_names_are_names(finetune):
    assert finetune(rows(1, "1", 2.0, "two", True)).steps == 2


@pytest.mark.faults
def test_ten_thousand_labels_are_classes_like_any(finetune, tmp_path):
    assert finetune(rows(*range(10_000)), steps=1).steps == 1
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert len(config["id2label"]) == 10_000


def test_texts_of_any_length_are_cut_to_the_model_or_stand_for_themselves(finetune, tmp_path):
    odd = ["x", "word " * 50_000, "\u200b", "[MASK] [PAD] [SEP]", "\U0001f600", "e" + "\u0301" * 500]
    train = [{"text": text, "label": label} for text in odd for label in ("pos", "neg")]
    assert finetune(train).steps == 2


EMPTY = {
    "nothing but blanks": ["  \n ", "\t"],
    "nothing but control characters": ["\x00\x07", "\u200b\u2060\ufeff"],
    "nothing but line ends": ["\n\n\n", "\r\r"],
    "shorter than asked for": ["short"] * 3,
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_corpus_of_which_nothing_is_left_counts_what_went(pretrain, case):
    with pytest.raises(DataError, match=r"no text is left: .*(empty|too_short).*\n.*Check data.train, .*min_chars"):
        pretrain(EMPTY[case], min_chars=10)


def test_a_corpus_of_one_token_is_trained_on_or_named(pretrain, tmp_path):
    assert pretrain(["a"]).steps == 2
    with pytest.raises(DataError, match="one token; none can be held out"):
        pretrain(["a"], eval_fraction=0.5, output_dir=tmp_path / "another")


def damaged(change):
    def make(folder, source):
        shutil.copytree(source, folder)
        change(folder)
        return folder

    return make


def rewritten(name, change):
    def rewrite(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damaged(rewrite)


def cut(name, size):
    return damaged(lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]))


def without(*roles):
    def change(content):
        for role in roles:
            content[role] = None

    return rewritten("tokenizer_config.json", change)


TOKENIZERS = {
    "no files": (damaged(lambda folder: [file.unlink() for file in folder.iterdir()]), r"holds no tokenizer.json"),
    "no vocabulary": (
        damaged(lambda folder: (folder / "tokenizer.json").unlink()),
        r"broken': knows no token but its special ones.*\n.*tokenizer.json",
    ),
    "an empty tokenizer.json": (cut("tokenizer.json", 0), r"tokenizer '.*broken': cannot be loaded"),
    "half a tokenizer.json": (cut("tokenizer.json", 2000), r"tokenizer '.*broken': cannot be loaded"),
    "half a tokenizer_config.json": (cut("tokenizer_config.json", 30), r"tokenizer '.*broken': cannot be loaded"),
    "another kind of model": (
        rewritten("tokenizer.json", lambda t: t["model"].update(type="Evil")), r"'.*broken': cannot be loaded",
    ),
    "a vocabulary of texts": (
        rewritten("tokenizer.json", lambda t: t["model"].update(vocab={"a": "b"})), r"broken': cannot be loaded",
    ),
    "a negative id": (
        rewritten("tokenizer.json", lambda t: t["model"].update(vocab={"a": -1})), r"broken': cannot be loaded",
    ),
    "a class of its own": (
        rewritten("tokenizer_config.json", lambda t: t.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": "x"})),
        r"tokenizer '.*broken': cannot be loaded",
    ),
    "no mask token": (without("mask_token"), r"mask token"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used_is_named(pretrain, tokenizer_dir, tmp_path, case):
    make, message = TOKENIZERS[case]
    with pytest.raises((DataError, ConfigError), match=message):
        pretrain(tokenizer=make(tmp_path / "broken", tokenizer_dir))


def test_what_no_tokenizer_takes_is_not_predicted_embedded_or_continued(model):
    engine = Engine.from_pretrained(model, head="sequence_classification", labels=["neg", "pos"])
    with pytest.raises(DataError, match=r"row 1 to predict is '\\ud800': a lone surrogate"):
        engine.predict(["fine", "\ud800"])
    with pytest.raises(DataError, match=r"text 0 to embed is '\\udfff': a lone surrogate"):
        engine.embed("\udfff")
    with pytest.raises(DataError, match=r"prompt 0 is '\\ud800': a lone surrogate"):
        engine.generate("\ud800")
