"""Choices and labels in the forms of published data sets, and what cannot be used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunecore.errors import ConfigError, DataError
from tunecore.heads.multiple_choice import NAME, MultipleChoice, MultipleChoiceOptions
from tunecore.testing import make_tokenizer
from tunecore.types import Head, Record


def head(**options):
    return MultipleChoice(MultipleChoiceOptions(**options))


def row(fields):
    return Record(fields, "train.jsonl", 3)


SWAG = {"context": "sent1", "question": "sent2", "choices": ("ending0", "ending1", "ending2", "ending3")}
COPA = {"question": "premise", "choices": ("choice1", "choice2"), "first_label": 1}
RACE = {"context": "article", "choices": "options", "label": "answer"}
ENDINGS = {f"ending{i}": f"end {i}" for i in range(4)}


@pytest.mark.parametrize(
    ("options", "fields", "choices", "right"),
    [
        (SWAG, {"sent1": "a", "sent2": "b", **ENDINGS, "label": "2"}, ["end 0", "end 1", "end 2", "end 3"], 2),
        (SWAG, {"sent1": "a", "sent2": "b", **ENDINGS, "ending3": "", "label": 1.0}, ["end 0", "end 1", "end 2"], 1),
        (COPA, {"premise": "p", "choice1": "x", "choice2": "y", "label": 2}, ["x", "y"], 1),
        (RACE, {"article": "p", "question": "q", "options": ["x", "y", "z"], "answer": "C"}, ["x", "y", "z"], 2),
        ({}, {"question": "q", "choices": ["red", "blue"], "label": "blue"}, ["red", "blue"], 1),
        ({}, {"question": "q", "choices": ["4", "0"], "label": "1"}, ["4", "0"], 1),
        ({}, {"question": "q", "choices": ["4", "7"], "label": "7"}, ["4", "7"], 1),
        (
            {"label": "answerKey"},
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            ["x", "y"], 1,
        ),
    ],
)  # fmt: skip
def test_rows_of_published_sets(options, fields, choices, right):
    ours, record = head(**options), row(fields)
    assert isinstance(ours, Head)
    assert ours.prepare([record]) == {}
    assert ours.choices(record) == choices
    assert ours.right_choice(record) == right


@given(st.integers(2, 12), st.data())
def test_numbers_and_letters_mean_the_same(count, data):
    right = data.draw(st.integers(0, count - 1))
    fields = {"question": "q", "choices": [f"choice {i}" for i in range(count)]}
    forms = [right, str(right), float(right), chr(ord("A") + right), chr(ord("a") + right), f"choice {right}"]
    assert {head().right_choice(row({**fields, "label": form})) for form in forms} == {right}


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({}, {"question": "q", "label": 0}, r"train\.jsonl:3: there is no column 'choices'; columns found: question"),
        ({}, {"question": "q", "choices": ["x"], "label": 0}, r"train\.jsonl:3: 1 choice\(s\); at least two"),
        ({}, {"question": "q", "choices": "x", "label": 0}, r"train\.jsonl:3: the choices .*are 'x', not a list"),
        ({}, {"question": "q", "choices": ["x", 3], "label": 0}, r"train\.jsonl:3: the choice 3 is no text"),
        ({}, {"question": "q", "choices": ["x", "y"]}, r"train\.jsonl:3: there is no column 'label'"),
        ({}, {"question": "q", "choices": ["x", "y"], "label": None}, r"train\.jsonl:3: the label .*is missing"),
        ({}, {"question": "q", "choices": ["x", "y"], "label": 2}, r"train\.jsonl:3: .*none of the 2 choices"),
        ({}, {"question": "q", "choices": ["x", "y"], "label": "-1"}, r"train\.jsonl:3: .*none of the 2 choices"),
        ({}, {"question": "q", "choices": ["x", "y"], "label": "C"}, r"train\.jsonl:3: .*none of the 2 choices"),
        ({}, {"question": "q", "choices": ["x", "y"], "label": math.nan}, r"train\.jsonl:3: the label .*is missing"),
        (COPA, {"premise": "q", "choice1": "", "choice2": "y", "label": 1}, r"'choice1' is empty, not the last"),
    ],
)
def test_what_cannot_be_used_is_named(options, fields, message):
    with pytest.raises(DataError, match=message):
        head(**options).prepare([row(fields)])


def test_a_row_without_its_question_is_left_out():
    ours = head(context="passage")
    fields = {"passage": "p", "question": "q", "choices": ["x", "y"], "label": 0}
    assert ours.reject(row(fields), labelled=True) is None
    assert ours.reject(row({**fields, "passage": None}), labelled=True) == "passage: missing"
    assert ours.reject(row({**fields, "question": math.nan}), labelled=False) == "question: NaN"
    lacking = {"question": "q", "choices": ["x", "y"], "label": 0}
    assert ours.reject(row(lacking), labelled=True) == "passage: missing"
    with pytest.raises(DataError, match=r"dev\.jsonl:3: there is no column 'passage'"):
        ours.reject(Record(lacking, "dev.jsonl", 3), labelled=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": None}, "both left out"),
        ({"choices": ("a",)}, "at least two columns"),
        ({"choices": ("a", "a")}, "each once"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


def test_a_row_is_one_group_and_its_first_choice_has_the_target():
    tokenizer = make_tokenizer()
    choices = ["her brother", "the old teacher"]
    fields = {"passage": "the river", "question": "who follows", "choices": choices, "label": 1}
    made = head(context="passage").examples(row(fields), 7, tokenizer, 32, labelled=True)
    assert [(e.row_id, e.group) for e in made] == [(7, 7), (7, 7)]
    assert made[0].targets[NAME].labels.tolist() == [1] and not made[1].targets
    want = tokenizer("the river", "who follows her brother")["input_ids"]
    assert made[0].input_ids.tolist() == want
    plain = head().examples(row(fields), 7, tokenizer, 32, labelled=False)
    assert plain[1].input_ids.tolist() == tokenizer("who follows", "the old teacher")["input_ids"]
    only = head(context="passage", question=None).examples(row(fields), 7, tokenizer, 32, labelled=False)
    assert only[0].input_ids.tolist() == tokenizer("the river", "her brother")["input_ids"]


def test_decode_gives_the_chosen_text():
    record = row({"question": "q", "choices": ["x", "y", "x"]})
    prediction = head().decode([torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0)], record, 5)
    p = math.e / (2 + math.e)
    assert (prediction.label, prediction.row_id) == ("y", 5)
    assert prediction.score == pytest.approx(p)
    assert prediction.scores == pytest.approx({"x": 1 - p, "y": p})


def test_metrics_count_questions_and_merge():
    one, other = head().metrics(), head().metrics()
    record = row({"question": "q", "choices": ["x", "y"], "label": 1})
    one.update_row([torch.tensor(0.0), torch.tensor(1.0)], record, 0)
    other.update_row([torch.tensor(2.0), torch.tensor(1.0)], record, 1)
    one.merge([other.state()])
    assert one.compute() == {"accuracy": 0.5}
