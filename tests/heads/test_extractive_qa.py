"""Questions and answers: what rows may hold, how they lie in windows, and which answer is chosen."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.conformance import check_component
from tunecore.data.rows import TaskRows
from tunecore.data.sources import ReadSummary, read_records
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError, DataError
from tunecore.heads.extractive_qa import NAME, ExtractiveQA, ExtractiveQAOptions
from tunecore.plugins import load_plugins
from tunecore.testing import make_tokenizer
from tunecore.types import Head, Progress, Record

TOKENIZERS = {name: make_tokenizer(name) for name in ("bert", "gpt2")}
TOKENIZER = TOKENIZERS["bert"]
CONTEXT = "The river carries the quiet town. A small boat remembers seven grey stones, an open window."
AT = CONTEXT.index("seven")
HERE = {"text": "seven grey stones", "answer_start": AT}


def head(**options):
    return ExtractiveQA(ExtractiveQAOptions(**options))


def record(answers, context=CONTEXT, question="What is it?", **more):
    return Record({"question": question, "context": context, "answers": answers, **more}, "train.json", 3)


@pytest.mark.parametrize(
    "answers",
    [
        [HERE],
        [HERE, {"text": "a boat", "answer_start": 1}],
        {"text": [HERE["text"]], "answer_start": [AT]},
        {"text": HERE["text"], "answer_start": AT},
        {"text": np.array([HERE["text"]]), "answer_start": np.array([AT])},
        ({"text": " seven grey stones", "answer_start": AT - 1},),
    ],
)
def test_answers_of_every_form_are_found_in_the_context(answers):
    ours = head()
    row = record(answers)
    assert ours.reject(row, labelled=True) is None
    (example,) = ours.examples(row, 5, TOKENIZER, 64, labelled=True)
    first, last = example.targets[NAME].index
    assert example.targets[NAME].labels.tolist() == [0, 1] and example.targets[NAME].level == "token"
    assert TOKENIZER.decode(example.input_ids[first : last + 1]) == "seven grey stones" and example.row_id == 5
    plain = TOKENIZER("What is it?", CONTEXT)
    assert example.input_ids.tolist() == plain["input_ids"]
    assert example.token_type_ids.tolist() == plain["token_type_ids"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record([{"text": "seven grey stones", "answer_start": AT + 1}]), "answers: the context has another text at"),
        (record([{"text": "seven grey stones"}]), "answers: the context has another text at"),
        (record([{"text": "town", "answer_start": -5}]), "answers: the context has another text at"),
        (record(None), "answers: missing"),
        (record("seven"), "answers: neither SQuAD's list nor"),
        (record(["seven"]), "answers: neither"),
        (record([{"text": 3, "answer_start": 0}]), "answers: neither"),
        (record({"text": ["a", "b"], "answer_start": [1]}), "answers: neither"),
        (record([{"text": " ", "answer_start": 3}]), "answers: empty"),
        (record([HERE], context=""), "context: empty"),
        (record([HERE], question=math.nan), "question: NaN"),
        (Record({"question": "Q", "context": "c"}, "train.json", 1), "answers: missing"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    ours = head()
    assert ours.reject(record([HERE]), labelled=True) is None
    assert ours.reject(row, labelled=True).startswith(reason)
    with pytest.raises(DataError, match=f"train.json:{row.row}: {reason}"):
        ours.prepare([record([HERE]), row])


def test_columns_can_be_named_and_missing_ones_are():
    row = Record({"q": "What?", "text": CONTEXT, "a": [HERE]}, "a.jsonl", 1)
    assert head(question="q", context="text", answers="a").reject(row, labelled=True) is None
    with pytest.raises(DataError, match=r"a\.jsonl:1: no column 'question', 'context', 'answers'; columns found: q,"):
        head().reject(row, labelled=True)
    with pytest.raises(DataError, match="no column 'context'"):
        head().examples(Record({"question": "What?"}, "<predict>", 0), 0, TOKENIZER, 32, labelled=False)


def test_whether_there_may_be_no_answer_is_learned_from_the_rows():
    ours = head()
    assert isinstance(ours, Head)
    assert ours.prepare([record([HERE])]) == {"no_answer": False}
    facts = ours.prepare([record([HERE]), record([])])
    assert facts == {"no_answer": True} and ours.no_answer
    assert ours.prepare([record([HERE]), record([HERE], is_impossible=True)])["no_answer"]
    other = head()
    other.load(json.loads(json.dumps(facts)))
    assert other.no_answer
    forced = head(no_answer=False)
    forced.load(facts)
    assert not forced.no_answer and not head().no_answer
    with pytest.raises(DataError, match="no training row has an answer"):
        head().prepare([record([])])
    with pytest.raises(DataError, match="no training rows"):
        head().prepare([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 0}, "n_best is 0"), ({"max_answer_length": 0}, "at least 1"), ({"stride": -1}, "stride is -1"),
        ({"max_question_length": 0}, "at least 1"), ({"max_null_windows": -1}, "must not be negative"),
        ({"null_threshold": math.nan}, "must be a number"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


@pytest.mark.parametrize("options", [{"max_null_windows": 1}, {"stride": 0, "max_question_length": 3, "n_best": 1}])
def test_the_contract_is_kept_with_other_options(options):
    registry = load_plugins().registry
    check_component(registry, registry.entry("head", NAME), options, None)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_windows_cover_the_context_and_say_where_the_answer_is(name, data):
    """Alignment by brute force over the characters of the context."""
    tokenizer = TOKENIZERS[name]
    repeat = data.draw(st.integers(1, 4))
    context = " ".join([CONTEXT] * repeat)
    start = data.draw(st.integers(0, len(context) - 1))
    stop = data.draw(st.integers(start + 1, min(len(context), start + 40)))
    text = context[start:stop]
    if not text.strip():
        return
    max_length, stride = data.draw(st.integers(12, 60)), data.draw(st.integers(0, 20))
    ours = head(stride=stride, max_question_length=4)
    row = record([{"text": text, "answer_start": start}], context)
    made = ours.examples(row, 0, tokenizer, max_length, labelled=True)
    layout = ours._layout(row)
    covered = set()
    start += len(text) - len(text.lstrip())
    stop = start + len(text.strip())
    for example, (first, last) in zip(made, layout.windows, strict=True):
        assert len(example) <= max_length
        covered |= set(range(first, last))
        held = range(first, last)
        places = {layout.offset + i - first: (layout.context.starts[i], layout.context.stops[i]) for i in held}
        assert example.input_ids[list(places)].tolist() == layout.context.ids[first:last].tolist()
        touching = [i for i, (a, b) in enumerate(zip(*layout.context[1:], strict=True)) if a < stop and b > start]
        begin, end = example.targets[NAME].index
        if set(touching) <= set(range(first, last)):
            assert [begin, end] == [layout.offset + touching[0] - first, layout.offset + touching[-1] - first]
            assert places[begin][0] <= start < places[begin][1] and places[end][0] < stop <= places[end][1]
        else:
            assert (begin, end) == (0, 0)
    assert covered == set(range(len(layout.context.ids)))


def test_of_the_windows_without_an_answer_some_are_drawn_each_epoch():
    ours = head(max_null_windows=2, stride=4)
    context = " ".join([CONTEXT] * 6)
    rows = [record([{**HERE, "answer_start": AT}], context), record([], context)]
    whole = TaskRows(rows, ours, TOKENIZER, 24)
    drawn = TaskRows(rows, ours, TOKENIZER, 24, seed=3)
    now = Progress(0, 1, 0.0, 1.0)
    answered = [e.input_ids.tolist() for e in whole.examples(0, 0, now) if e.targets[NAME].index.any()]
    assert len(whole.examples(0, 0, now)) > 6 and answered
    seen = set()
    for epoch in range(6):
        kept = drawn.examples(0, epoch, now)
        assert [e.input_ids.tolist() for e in kept if e.targets[NAME].index.any()] == answered
        assert len(kept) == len(answered) + 2
        assert [e.input_ids.tolist() for e in drawn.examples(0, epoch, now)] == [e.input_ids.tolist() for e in kept]
        assert len(drawn.examples(1, epoch, now)) == 2
        seen |= {e.part for e in kept}
    assert len(seen) > 4, "other windows in other epochs"
    none = head(max_null_windows=0, stride=4)
    made = none.examples(rows[1], 0, TOKENIZER, 24, labelled=True)
    assert len(none.training_examples(made, PhiloxStream(0))) == 1, "a row without an answer keeps one window"


def brute_force(raw, layout, context, limit):
    """{(start, end): score} of every stretch of at most ``limit`` pieces inside a window, its text trimmed."""
    found = {}
    for logits, (first, stop) in zip(raw, layout.windows, strict=True):
        for i in range(first, stop):
            for j in range(i, min(stop, i + limit)):
                a, b = int(layout.context.starts[i]), int(layout.context.stops[j])
                shown = context[a:b]
                if not shown.strip():
                    continue
                a += len(shown) - len(shown.lstrip())
                key = (a, a + len(shown.strip()))
                score = logits[layout.offset + i - first, 0] + logits[layout.offset + j - first, 1]
                found[key] = max(found.get(key, -math.inf), float(score))
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), limit=st.integers(1, 12), n_best=st.integers(1, 6), max_length=st.integers(14, 60))
def test_the_best_answers_are_those_of_all_pairs(name, seed, limit, n_best, max_length):
    ours = head(max_answer_length=limit, n_best=n_best, stride=6, max_question_length=4)
    row = record([HERE], f"{CONTEXT}  {CONTEXT}", id="q7")
    made = ours.examples(row, 0, TOKENIZERS[name], max_length, labelled=False)
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randn(len(e), 2, generator=generator) * 3 for e in made]
    prediction = ours.decode(raw, row, 4)
    context = row.fields["context"]
    expected = sorted(brute_force(raw, ours._layout(row), context, limit).items(), key=lambda item: -item[1])[:n_best]
    answers = prediction.details["answers"]
    assert [(a["start"], a["end"]) for a in answers] == [place for place, _ in expected]
    assert all(a["text"] == context[a["start"] : a["end"]] for a in answers)
    weights = np.exp(np.array([score for _, score in expected]))
    assert [a["score"] for a in answers] == pytest.approx(list(weights / weights.sum()), rel=1e-4)
    assert prediction.label == answers[0]["text"] and prediction.score == answers[0]["score"]
    assert (prediction.details["start"], prediction.details["end"]) == expected[0][0]
    assert prediction.details["id"] == "q7" and prediction.row_id == 4
    json.dumps(prediction.details, allow_nan=False)


@pytest.mark.parametrize(
    ("null", "threshold", "text"),
    [(9.0, 0.0, "seven"), (11.0, 0.0, ""), (11.0, 2.0, "seven"), (9.0, -2.0, "")],
)
def test_no_answer_is_chosen_where_it_scores_higher_by_the_threshold(null, threshold, text):
    ours = head(no_answer=True, null_threshold=threshold, n_best=2)
    row = record([HERE], " ".join([CONTEXT] * 2))
    made = ours.examples(row, 0, TOKENIZER, 40, labelled=True)
    assert len(made) > 1
    raw = [torch.full((len(e), 2), -5.0) for e in made]
    at = int(made[0].targets[NAME].index[0])
    raw[0][at] = 5.0  # "seven" scores 10
    for logits in raw:
        logits[0] = 50.0
    raw[1][0] = torch.tensor([null - 1, 1.0])  # the window that has most of an answer decides
    found = ours.decode(raw, row, 0)
    assert found.label == text and found.details["answers"][0]["text"] == text
    assert (found.details["start"] is None) == (text == "")
    assert sum(a["score"] for a in found.details["answers"]) == pytest.approx(1)
    assert len(found.details["answers"]) == 3
    metrics = ours.metrics()
    metrics.update_row(raw, row, 0)
    assert metrics.sums["answerable"][1] == 0  # "seven" is not the whole answer
    assert metrics.margins == [[pytest.approx(null - 10), pytest.approx(0.5), 0.0]]
    plain = head(no_answer=False)
    plain.examples(row, 0, TOKENIZER, 40, labelled=True)
    assert plain.decode(raw, row, 0).label == "seven"


def test_a_context_without_a_piece_has_no_answer():
    ours = head()
    row = Record({"question": "What?", "context": "\u200b"}, "<predict>", 0)
    (example,) = ours.examples(row, 0, TOKENIZER, 32, labelled=False)
    assert ours.decode([torch.zeros(len(example), 2)], row, 0).label == ""


def test_an_answer_that_the_tokenizer_drops_is_not_learned(caplog):
    row = record([{"text": "\u200b", "answer_start": 4}], "The \u200b river")
    (example,) = head().examples(row, 0, TOKENIZER, 32, labelled=True)
    assert example.targets == {} and "train.json:3: the tokenizer drops the whole answer" in caplog.text


def test_real_questions_are_counted(shared_data):
    ours, summary = head(), ReadSummary()
    kept = []
    for row in read_records([str(shared_data / "qa" / "200423_covidQA.json")], summary=summary):
        reason = ours.reject(row, labelled=True)
        if reason is None:
            kept.append(row)
        else:
            summary.skip(row, reason, "skip")
    assert len(kept) == 1146
    assert summary.skipped == {"answers: the context has another text at answer_start": 234}
    assert ours.prepare(kept) == {"no_answer": False}
