"""Rows to examples: template, what is learned, lengths, and what is refused."""

from __future__ import annotations

import pytest

from tunecore.errors import ConfigError, DataError
from tunecore.heads.causal_generation import CausalGeneration, CausalGenerationOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import make_model, make_tokenizer
from tunecore.types import Head, Record

NAME = "causal_generation"
LONG = "The river carries the quiet town. A small boat follows the harbour lights."


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("gpt2")


def head(**options):
    return CausalGeneration(CausalGenerationOptions(**options))


def record(**fields):
    return Record(fields, "rows.csv", 3)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    ours = head()
    assert isinstance(ours, Head)
    row = record(prompt="The river", completion="A small boat")
    (example,) = ours.examples(row, 2, tokenizer, 64, labelled=True)
    prompt, written = ids_of(tokenizer, "The river\n"), [*ids_of(tokenizer, "A small boat"), tokenizer.eos_token_id]
    assert example.input_ids.tolist() == prompt + written
    targets = example.targets[NAME]
    assert targets.labels.tolist() == written
    assert targets.index.tolist() == list(range(len(prompt) - 1, len(prompt) + len(written) - 1))
    assert ours.prompt(row, tokenizer, 64).tolist() == prompt
    (bare,) = ours.examples(row, 2, tokenizer, 64, labelled=False)
    assert bare.input_ids.tolist() == prompt and bare.targets == {} and bare.prefix_len is None


def test_a_template_takes_any_columns(tokenizer):
    ours = head(template="Q: {question} ({topic})\nA: ", completion="answer")
    row = record(question="who", topic="art", answer=["me", "you"])
    assert ours.row_columns == ("question", "topic")
    assert ours.prompt(row, tokenizer, 64).tolist() == ids_of(tokenizer, "Q: who (art)\nA: ")
    assert ours.references(row) == ["me", "you"]
    assert ours.reject(row, labelled=True) is None
    assert ours.reject(record(question="who", topic="art"), labelled=False) is None


def test_the_prompt_can_be_learned_too_and_the_end_left_out(tokenizer):
    row = record(prompt="The river", completion="A small boat")
    (example,) = head(learn_prompt=True, append_end=False).examples(row, 0, tokenizer, 64, labelled=True)
    assert example.input_ids.tolist() == ids_of(tokenizer, "The river\n") + ids_of(tokenizer, "A small boat")
    assert example.targets[NAME].labels.tolist() == example.input_ids[1:].tolist()


def test_without_a_template_texts_are_learned_whole(tokenizer):
    ours = head(template=None, completion="text")
    row = record(text="The river")
    (example,) = ours.examples(row, 0, tokenizer, 64, labelled=True)
    ids = ids_of(tokenizer, "The river")
    assert example.input_ids.tolist() == [*ids, tokenizer.eos_token_id]
    assert example.targets[NAME].labels.tolist() == example.input_ids[1:].tolist()
    assert ours.prompt(row, tokenizer, 64).tolist() == ids
    assert ours.row_columns == ("text",) and ours.default_metric == "-loss"


def test_a_tokenizer_that_opens_texts_opens_the_prompt_once():
    class Opening:
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text, add_special_tokens=True, verbose=True):
            return {"input_ids": [1] * add_special_tokens + [10 + ord(c) % 50 for c in text]}

    (example,) = head().examples(record(prompt="a", completion="b"), 0, Opening(), 32, labelled=True)
    assert example.input_ids.tolist() == [1, 10 + 97 % 50, 20, 10 + 98 % 50, 2]
    assert head(max_prompt_length=3).prompt(record(prompt="abcdef"), Opening(), 32).tolist() == [1, 10 + 102 % 50, 20]


def test_long_prompts_lose_their_beginning_and_long_completions_their_end(tokenizer):
    ours = head(max_new_tokens=10)
    row = record(prompt=LONG, completion=LONG)
    (example,) = ours.examples(row, 0, tokenizer, 24, labelled=True)
    prompt = ids_of(tokenizer, LONG + "\n")[-14:]
    assert example.input_ids.tolist() == prompt + ids_of(tokenizer, LONG)[:10]
    assert ours.prompt(row, tokenizer, 24).tolist() == prompt
    notes = ours.row_notes()
    assert "prompts cut to their last 14 tokens: 2" in notes and "completions cut" in notes and notes.endswith(": 1")
    with pytest.raises(ConfigError, match=r"a prompt of 1 tokens and max_new_tokens 24 do not fit data.max_length 24"):
        head(max_new_tokens=24).prompt(row, tokenizer, 24)
    with pytest.raises(ConfigError, match=r"a prompt of 20 tokens and max_new_tokens 12 do not fit data.max_length 24"):
        head(max_prompt_length=20).prompt(row, tokenizer, 24)


def test_a_prompt_that_sees_itself_is_the_examples_prefix(tokenizer):
    ours = head(bidirectional_prompt=True)
    (example,) = ours.examples(record(prompt="The river", completion="b"), 0, tokenizer, 32, labelled=True)
    assert example.prefix_len == len(ids_of(tokenizer, "The river\n")) == example.targets[NAME].index[0] + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "no column"}, "names no column"),
        ({"template": "{}"}, "names no column"),
        ({"template": "{prompt"}, "causal_generation.template '{prompt'"),
        ({"template": "{prompt!r}"}, "is not just the name of a column"),
        ({"template": "{prompt.__class__}"}, "is not just the name of a column"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0"),
        ({"bidirectional_prompt": True, "learn_prompt": True}, "each would see itself"),
        ({"bidirectional_prompt": True, "template": None}, "each would see itself"),
        ({"template": None, "metrics": ("exact_match",)}, "there is no prompt to answer"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


def test_rows_and_models_that_do_not_fit_are_named(tokenizer):
    with pytest.raises(DataError, match=r"rows.csv:3: there is no column 'prompt'; columns found: completion"):
        head().reject(record(completion="x"), labelled=True)
    assert head().reject(record(prompt="x", completion=None), labelled=True) == "completion: missing"
    for name in ("bert", "t5"):
        family, model = FAMILIES[name], make_model(["masked_lm"], make_tokenizer(name), name)
        with pytest.raises(ConfigError, match="needs a model that reads from left to right"):
            head().build(model, family)
