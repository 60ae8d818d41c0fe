"""Tags of words: what rows may hold, how words lie in windows, and what is said of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.conformance import check_component
from tunecore.errors import ConfigError, DataError
from tunecore.heads.token_classification import NAME, TokenClassification, TokenClassificationOptions
from tunecore.heads.word_windows import WordWindows
from tunecore.plugins import load_plugins
from tunecore.testing import make_tokenizer, tiny_records
from tunecore.types import Head, Record

TOKENIZER = make_tokenizer()
LABELS = ("O", "B-per", "I-per", "B-loc", "I-loc")


def head(**options):
    return TokenClassification(TokenClassificationOptions(**options))


def records(*rows, file="train.conll"):
    return [Record(row, file, number) for number, row in enumerate(rows, start=1)]


def row(tokens, tags, **more):
    return {"tokens": tokens, "tags": tags, **more}


def targets_of(ours, record, max_length=32):
    """[(window, place, label)] of every target."""
    made = ours.examples(record, 0, TOKENIZER, max_length, labelled=True)
    return [
        (number, int(place), ours.labels[label])
        for number, example in enumerate(made)
        for place, label in zip(example.targets[NAME].index, example.targets[NAME].labels, strict=True)
    ]


def test_tags_are_found_ordered_and_completed():
    ours = head()
    assert isinstance(ours, Head)
    found = ours.prepare(records(row(["a", "b"], ["I-per", "O"]), row("c d", "B-loc B-loc")))
    assert found == {"labels": ["O", "B-loc", "I-loc", "B-per", "I-per"]}
    assert ours.default_metric == "f1"
    other = head()
    other.load(json.loads(json.dumps(found)))
    assert other.labels == ours.labels
    parts = head()
    assert parts.prepare(records(row(["a", "b"], np.array(["VERB", "NOUN"])))) == {"labels": ["NOUN", "VERB"]}
    assert parts.default_metric == "accuracy"


def test_whole_numbers_count_into_the_labels_given():
    ours = head(labels=LABELS)
    rows = records(row(["the", "river"], [0, np.int64(3)]), row(["the"], ["B-loc"]))
    ours.prepare(rows)
    assert [label for _, _, label in targets_of(ours, rows[0])] == ["O", "B-loc"]
    with pytest.raises(DataError, match=r"train\.conll:1: unknown tag '7' \(column 'tags'\); known: O, B-per"):
        ours.prepare(records(row(["the"], [7])))
    with pytest.raises(ConfigError, match="has 5 names, but the model has 2 classes: O, B-x"):
        ours.load({"labels": ["O", "B-x"]})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (row([], []), "tokens: empty"),
        (row(" ", ""), "tokens: empty"),
        (row(None, ["O"]), "tokens: missing"),
        (row(3, ["O"]), "tokens: int, not text"),
        (row(["a", None], ["O", "O"]), "tokens: a list with NoneType, not of words"),
        (row(["a", 3], ["O", "O"]), "tokens: a list with int, not of words"),
        (row(["a"], None), "tags: missing"),
        (row(["a"], 3.0), "tags: float, not a list of tags"),
        (row(["a"], [None]), "tags: a list with NoneType, not of names or whole numbers"),
        (row(["a"], ["O", "O"]), "tags: another number than tokens"),
        ({"tokens": ["a"]}, "tags: missing"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(fields, reason):
    ours = head()
    good, bad = records(row(["a"], ["O"]), fields)
    assert ours.reject(good, labelled=True) is None
    assert ours.reject(bad, labelled=True) == reason
    with pytest.raises(DataError, match=r"train\.conll:2: "):
        ours.prepare([good, bad])


def test_columns_that_a_file_lacks_are_named_with_those_it_has():
    (wrong,) = records({"words": ["a"], "ner": ["O"]})
    with pytest.raises(DataError, match=r"train\.conll:1: no column 'tokens', 'tags'; columns found: words, ner"):
        head().reject(wrong, labelled=True)
    assert head(tokens="words", tags="ner").reject(wrong, labelled=True) is None
    assert head(tokens="words").reject(wrong, labelled=False) is None
    with pytest.raises(DataError, match="no column 'tokens'"):
        head().examples(wrong, 0, TOKENIZER, 32, labelled=False)


def test_one_tag_and_no_rows_are_refused():
    with pytest.raises(DataError, match="every word of the training rows has the tag 'O'"):
        head().prepare(records(row(["a", "b"], ["O", "O"])))
    with pytest.raises(DataError, match="no training rows"):
        head().prepare([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_pieces": "last"}, "must be first or all"),
        ({"stride": -1}, "must not be negative"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1"),
        ({"labels": ("O",)}, "two at least"),
        ({"labels": ("O", "O")}, "none twice"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


@pytest.mark.parametrize(
    "options",
    [{"label_pieces": "all"}, {"stride": 0, "well_formed": True}, {"label_smoothing": 0.1}],
)
def test_the_contract_is_kept_with_other_options(options):
    registry = load_plugins().registry
    check_component(registry, registry.entry("head", NAME), options, None)


def test_the_tag_stands_at_the_first_piece_or_at_all():
    words = ["The", "watchtower", "."]
    pieces = [len(TOKENIZER(word, add_special_tokens=False)["input_ids"]) for word in words]
    assert pieces[1] > 1
    record = Record(row(words, ["O", "B-loc", "O"]), "x", 1)
    first, whole = head(labels=LABELS), head(labels=LABELS, label_pieces="all")
    assert targets_of(first, record) == [(0, 1, "O"), (0, 2, "B-loc"), (0, 2 + pieces[1], "O")]
    inner = [(0, 3 + i, "I-loc") for i in range(pieces[1] - 1)]
    assert targets_of(whole, record) == [(0, 1, "O"), (0, 2, "B-loc"), *inner, (0, 2 + pieces[1], "O")]


WORDS = st.text(st.sampled_from("aertT.-\u200b\u4e2d"), max_size=12)


TAGGED = st.lists(st.tuples(WORDS, st.sampled_from(LABELS)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(TAGGED, st.integers(5, 20), st.integers(0, 9))
def test_every_word_has_its_tag_at_its_first_piece_in_one_window(pairs, max_length, stride):
    """Alignment by brute force: the pieces of each word alone, looked for in the windows that are said to hold it."""
    words, tags = [word for word, _ in pairs], [tag for _, tag in pairs]
    ours = head(labels=LABELS, stride=stride)
    record = Record(row(words, tags), "x", 1)
    made = ours.examples(record, 7, TOKENIZER, max_length, labelled=True)
    assert all(len(e) <= max_length and e.row_id == 7 and e.token_type_ids is None for e in made)
    cls, sep = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
    assert all(e.input_ids[0] == cls and e.input_ids[-1] == sep for e in made)
    room = max_length - 2
    alone = [TOKENIZER(word, add_special_tokens=False)["input_ids"][:room] for word in words]
    alone = [pieces or [TOKENIZER.unk_token_id] for pieces in alone]
    layout = WordWindows(TOKENIZER, stride).layout(words, max_length)
    expected = []
    for number, (first, stop) in enumerate(layout.windows):
        held = [piece for pieces in alone[first:stop] for piece in pieces]
        assert made[number].input_ids[1:-1].tolist() == held
        for word in range(first, stop):
            if layout.window[word] == number:
                expected.append((number, 1 + sum(map(len, alone[first:word])), tags[word]))
    assert targets_of(ours, record, max_length) == expected
    assert sorted(t[2] for t in expected) == sorted(tags), "each word once"


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_predictions_are_read_at_the_same_places(data):
    words = data.draw(st.lists(WORDS, min_size=1, max_size=25))
    tags = data.draw(st.lists(st.sampled_from(LABELS), min_size=len(words), max_size=len(words)))
    ours = head(labels=LABELS, stride=3)
    record = Record(row(words, tags), "x", 1)
    raw = []
    for example in ours.examples(record, 0, TOKENIZER, 9, labelled=True):
        logits = torch.zeros(len(example), len(LABELS))
        found = example.targets[NAME]
        logits[found.index, found.labels] = 4.0
        raw.append(logits)
    prediction = ours.decode(raw, record, 5)
    assert prediction.label == tags and prediction.row_id == 5
    weight = float(np.exp(4) / (np.exp(4) + len(LABELS) - 1))
    assert prediction.details["scores"] == pytest.approx([weight] * len(words))
    metrics = ours.metrics()
    metrics.update_row(raw, record, 0)
    assert metrics.compute()["accuracy"] == 1.0


def decoded(ours, fields, tags):
    """The prediction for a row whose words look like ``tags``, one of them half so much like O."""
    record = Record(fields, "<predict>", 0)
    (example,) = ours.examples(record, 0, TOKENIZER, 32, labelled=False)
    logits = torch.zeros(len(example), len(LABELS))
    for word, place, _ in ours._layout(ours._words(record)).read_from(0):
        logits[place, LABELS.index(tags[word])] = 5.0
        logits[place, 0] += 1.0
    return ours.decode([logits], record, 0)


def test_entities_have_their_text_and_place():
    tags = ["B-per", "I-per", "O", "O", "B-loc", "O"]
    text = " Ada  Lovelace lives in Paris."
    ours = head(labels=LABELS)
    found = decoded(ours, {"text": text}, tags)
    assert found.label == tags
    assert found.details["words"] == ["Ada", "Lovelace", "lives", "in", "Paris", "."]
    shown = [(e["type"], e["text"], text[e["start"] : e["end"]], e["words"]) for e in found.details["entities"]]
    assert shown == [("per", "Ada  Lovelace", "Ada  Lovelace", [0, 2]), ("loc", "Paris", "Paris", [4, 5])]
    entity = found.details["entities"][0]
    assert entity["score"] == pytest.approx(np.mean(found.details["scores"][:2]))
    assert [text[a:b] for a, b in found.details["offsets"]] == found.details["words"]
    json.dumps(found.details, allow_nan=False)
    by_list = decoded(ours, {"tokens": found.details["words"]}, tags).details["entities"][1]
    assert by_list["start"] == len("Ada Lovelace lives in ") and by_list["text"] == "Paris"
    by_blanks = decoded(ours, {"tokens": "Ada Lovelace lives in  Paris."}, tags[:5]).details
    assert by_blanks["words"][-1] == "Paris." and by_blanks["offsets"][-1] == [23, 29]


def test_a_stray_inner_tag_begins_a_span_or_is_mended():
    tags = ["O", "I-per", "B-loc", "I-per"]
    fields = {"tokens": ["the", "river", "carries", "the"]}
    plain = decoded(head(labels=LABELS), fields, tags)
    assert plain.label == tags and [e["words"] for e in plain.details["entities"]] == [[1, 2], [2, 3], [3, 4]]
    mended = decoded(head(labels=LABELS, well_formed=True), fields, tags)
    assert mended.label == ["O", "O", "B-loc", "O"], "O O has the scores 6 + 1, B-per I-per 0 + 5"


def test_a_text_without_words_has_no_tags():
    ours = head(labels=LABELS)
    found = decoded(ours, {"text": "  "}, [])
    assert found.label == [] and found.details["entities"] == []


def test_the_rows_that_every_head_is_tried_with_are_cut_into_windows():
    ours = head()
    rows = tiny_records()
    ours.prepare(rows)
    assert ours.labels == ("O", "B-thing", "I-thing")
    assert max(len(ours.examples(r, 0, TOKENIZER, 16, labelled=True)) for r in rows) > 2
