"""Minimal pairs: what is asked of the model, and which rows are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunecore.errors import ConfigError, DataError
from tunecore.heads.minimal_pairs import TOKENS, MinimalPairs, MinimalPairsOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import make_model, make_tokenizer
from tunecore.types import Head, Record


@pytest.fixture(scope="module")
def bert():
    return make_tokenizer("bert")


@pytest.fixture(scope="module")
def gpt2():
    return make_tokenizer("gpt2")


def head(**options):
    return MinimalPairs(MinimalPairsOptions(**options))


def pair(good="The river follows her brother.", bad="The river follow her brother.", **fields):
    return Record({"sentence_good": good, "sentence_bad": bad, **fields}, "pairs.jsonl", 7)


def examples(made, tokenizer, record=None, labelled=True, max_length=32):
    return made.examples(pair() if record is None else record, 3, tokenizer, max_length, labelled=labelled)


def test_it_is_a_head():
    assert isinstance(head(), Head)


def test_a_masked_model_is_asked_for_every_token_once(bert):
    made = examples(head(), bert)
    for sentence, tokens in zip(pair().fields.values(), TOKENS, strict=True):
        ids = np.array(bert(sentence)["input_ids"])
        copies = [example for example in made if tokens in example.targets]
        assert len(copies) == len(ids) - 2
        for place, example in enumerate(copies, start=1):
            target = example.targets[tokens]
            assert (target.index.tolist(), target.labels.tolist()) == ([place], [ids[place]])
            expected = ids.copy()
            expected[place] = bert.mask_token_id
            np.testing.assert_array_equal(example.input_ids, expected)
    assert {example.row_id for example in made} == {example.group for example in made} == {3}


def test_later_pieces_of_the_word_are_masked_too(bert):
    sentence = "her unharbourly boat"
    pieces = bert.tokenize(sentence)
    assert sum(piece.startswith("##") for piece in pieces) >= 2
    ids, mask = bert(sentence)["input_ids"], bert.mask_token_id
    made = examples(head(scoring="within_word_l2r"), bert, pair(sentence, "her boat"))[: len(pieces)]
    for place, example in enumerate(made):
        stop = place + 1
        while stop < len(pieces) and pieces[stop].startswith("##"):
            stop += 1
        hidden = range(place + 1, stop + 1)  # after [CLS]
        assert example.input_ids.tolist() == [mask if i in hidden else ids[i] for i in range(len(ids))]


def test_a_causal_model_is_asked_once_for_all_tokens_after_the_beginning_of_text(gpt2):
    good, bad = examples(head(), gpt2)
    ids = gpt2(pair().fields["sentence_good"])["input_ids"]
    assert good.input_ids.tolist() == [gpt2.bos_token_id, *ids[:-1]]
    assert good.targets[TOKENS[0]].labels.tolist() == ids
    assert good.targets[TOKENS[0]].index.tolist() == list(range(len(ids)))
    assert TOKENS[1] in bad.targets and TOKENS[0] not in bad.targets


def test_without_a_beginning_of_text_the_first_token_is_only_read(gpt2):
    other = make_tokenizer("gpt2")
    other.bos_token = None
    good, _ = examples(head(), other)
    ids = gpt2(pair().fields["sentence_good"])["input_ids"]
    assert good.input_ids.tolist() == ids[:-1]
    assert good.targets[TOKENS[0]].labels.tolist() == ids[1:]
    with pytest.raises(DataError, match=r"pairs\.jsonl:7: the sentence 'The' has no token that can be scored"):
        examples(head(), other, pair("The", "The river"))


def test_one_target_a_pair_and_none_without_labels(bert):
    counted = [example for example in examples(head(), bert) if "minimal_pairs" in example.targets]
    assert [len(example.targets["minimal_pairs"]) for example in counted] == [1]
    assert not any("minimal_pairs" in example.targets for example in examples(head(), bert, labelled=False))


def test_a_sentence_is_never_cut(bert):
    with pytest.raises(DataError, match=r"pairs.jsonl:7: the sentence 'The river .*' has \d+ tokens; the most is 6"):
        examples(head(), bert, max_length=6)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"sentence_bad": None}, "sentence_bad: missing"), ({"sentence_good": "  "}, "sentence_good: empty"),
     ({"sentence_good": 3}, "sentence_good: int, not text")],
)  # fmt: skip
def test_rows_without_two_sentences_are_rejected(fields, reason):
    assert head().reject(pair(**fields), labelled=True) == reason
    with pytest.raises(DataError, match=f"pairs.jsonl:7: {reason}; columns found: sentence_good, sentence_bad"):
        head().prepare([pair(**fields)])


def test_a_group_that_is_named_must_be_there():
    assert [*head().select([pair()])]
    with pytest.raises(DataError, match=r"pairs\.jsonl:7: there is no column 'phenomenon'"):
        list(head(group="phenomenon").select([pair()]))


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=30), st.integers(1, 6))
def test_the_first_rows_of_each_group_are_taken(groups, most):
    records = [Record({"UID": group, "n": n}, "pairs", n) for n, group in enumerate(groups)]
    taken = [record.row for record in head(max_per_group=most).select(records)]
    expected = [n for n, group in enumerate(groups) if groups[:n].count(group) < most]
    assert taken == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=40))
def test_accuracy_over_pairs_over_groups_and_merged(rows):
    whole, parts = head().metrics(), [head().metrics(), head().metrics()]
    for number, (group, good, bad) in enumerate(rows):
        record = pair(UID=group)
        for metrics in (whole, parts[number % 2]):
            metrics.update_row([np.float64([good, 0.0]), np.float64([0.0, bad])], record, number)
    parts[0].merge([parts[1].state()])
    assert parts[0].compute() == whole.compute()
    right = {g: [good > bad for name, good, bad in rows if name == g] for g in {name for name, _, _ in rows}}
    found = whole.compute()
    assert found["accuracy"] == pytest.approx(np.mean([good > bad for _, good, bad in rows]))
    assert found["accuracy_macro"] == pytest.approx(np.mean([np.mean(values) for values in right.values()]))
    assert found["report"] == {
        g: {"accuracy": pytest.approx(np.mean(right[g])), "support": len(right[g])} for g in sorted(right)
    }


def test_rows_without_groups_have_no_report():
    metrics = head().metrics()
    metrics.update_row([np.array([-1.0, -2.0])], pair(), 0)
    assert metrics.compute() == {"accuracy": 1.0}


@pytest.mark.parametrize(("family", "scoring"), [("gpt2", "original"), ("gpt2", "within_word_l2r"), ("bert", "causal")])
def test_scoring_must_fit_the_model(family, scoring):
    model = make_model(["masked_lm", "causal_lm"], make_tokenizer(family), family)
    with pytest.raises(ConfigError, match=f"but {family} reads"):
        head(scoring=scoring).build(model, FAMILIES[family])


def test_a_tokenizer_with_a_mask_does_not_hide_that_the_model_is_causal(bert):
    made = head()
    examples(made, bert)
    with pytest.raises(ConfigError, match="Set the option scoring to causal"):
        made.build(make_model(["causal_lm"], bert, "gpt2"), FAMILIES["gpt2"])
    known = head()
    known.build(make_model(["causal_lm"], bert, "gpt2"), FAMILIES["gpt2"])
    assert len(examples(known, bert)) == 2


def test_masking_needs_a_mask_token(gpt2):
    with pytest.raises(ConfigError, match="the tokenizer has no mask token"):
        examples(head(scoring="original"), gpt2)


@pytest.mark.parametrize(
    "options", [{"scoring": "best"}, {"max_per_group": 0}, {"good": "text", "bad": "text"}], ids=str
)
def test_options_out_of_range_are_errors(options):
    with pytest.raises(ConfigError, match="minimal_pairs"):
        head(**options)
