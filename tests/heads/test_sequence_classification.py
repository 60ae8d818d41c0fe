from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunecore.data.sources import builtin_sources, read_records
from tunecore.errors import ConfigError, DataError
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.types import Head, Record

WORDS = ["a", "fine", "film", "dull", "plot", "the", "end", "of", "it", "all", "is", "good", "bad"]


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def head(**options):
    return SequenceClassification(SequenceClassificationOptions(**options))


def records(*rows, file="train.csv"):
    return [Record(row, file, number) for number, row in enumerate(rows, start=2)]


def rows_of(*labels):
    return records(*({"text": "a film", "label": label} for label in labels))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        (["10", "9", "100"], ["9", "10", "100"]),
        ([1, 0, 2], ["0", "1", "2"]),
        ([1.0, 0.0], ["0", "1"]),
        ([10, "x", 9], ["10", "9", "x"]),
        ([True, False], ["False", "True"]),
        ([np.int64(3), np.int64(-1)], ["-1", "3"]),
        ([" yes", "no "], ["no", "yes"]),
    ],
)
def test_labels_are_found_and_ordered(values, expected):
    ours = head()
    assert isinstance(ours, Head)
    assert ours.prepare(rows_of(*values)) == {"labels": expected}
    assert ours.labels == tuple(expected)


def test_given_labels_keep_their_order_and_numbers_count_into_them(tokenizer):
    ours = head(labels=("pos", "neg"))
    assert ours.prepare(rows_of("neg", 0)) == {"labels": ["pos", "neg"]}
    got = [ours.examples(r, 0, tokenizer, 16, labelled=True)[0] for r in rows_of("pos", "neg", 0, 1, "1")]
    assert [int(e.targets["sequence_classification"].labels[0]) for e in got] == [0, 1, 0, 1, 1]
    assert got[0].targets["sequence_classification"].level == "sequence"


def test_numbers_that_are_names_are_names_and_not_places(tokenizer):
    ours = head(labels=("1", "0"))
    got = [ours.examples(r, 0, tokenizer, 16, labelled=True)[0] for r in rows_of(0, 1)]
    assert [int(e.targets["sequence_classification"].labels[0]) for e in got] == [1, 0]


def test_facts_of_a_saved_model_are_taken_up(tokenizer):
    ours = head()
    ours.load({"labels": ["LABEL_0", "LABEL_1"]})
    (example,) = ours.examples(rows_of(1)[0], 0, tokenizer, 16, labelled=True)
    assert int(example.targets["sequence_classification"].labels[0]) == 1
    renamed = head(labels=("no", "yes"))
    renamed.load({"labels": ["LABEL_0", "LABEL_1"]})
    assert renamed.labels == ("no", "yes")
    with pytest.raises(ConfigError, match=r"3 names, but the model has 2 classes: LABEL_0, LABEL_1"):
        head(labels=("a", "b", "c")).load({"labels": ["LABEL_0", "LABEL_1"]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "x", "label": "a"}, r"train\.csv:2: there is no column 'text'; columns found: sentence, label"),
        ({"text": None, "label": "a"}, r"train\.csv:2: the text \(column 'text'\) is missing or NaN"),
        ({"text": math.nan, "label": "a"}, r"train\.csv:2: the text \(column 'text'\) is missing or NaN"),
        ({"text": 3, "label": "a"}, r"train\.csv:2: column 'text' is 3 \(int\), not a text"),
        ({"text": "x"}, r"train\.csv:2: there is no column 'label'; columns found: text"),
        ({"text": "x", "label": None}, r"train\.csv:2: the label \(column 'label'\) is missing"),
        ({"text": "x", "label": math.nan}, r"train\.csv:2: the label \(column 'label'\) is missing"),
        ({"text": "x", "label": "  "}, r"train\.csv:2: the label \(column 'label'\) is missing"),
        ({"text": "x", "label": 0.5}, r"train\.csv:2: the label \(column 'label'\) is 0.5"),
        ({"text": "x", "label": ["a"]}, r"train\.csv:2: the label \(column 'label'\) is \['a'\]"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, message):
    with pytest.raises(DataError, match=message):
        head().prepare(records(row, {"text": "y", "label": "b"}))


def test_a_missing_column_says_how_to_name_one():
    with pytest.raises(DataError, match="by the option text of the head sequence_classification"):
        head().prepare(records({"sentence": "x", "label": "a"}))
    with pytest.raises(DataError, match="by the option text_pair"):
        head(text_pair="other").prepare(records({"text": "x", "label": "a"}))


def test_an_unseen_label_in_evaluation_is_named_with_the_known(tokenizer):
    ours = head()
    ours.prepare(rows_of("neg", "pos"))
    (row,) = records({"text": "x", "label": "maybe"}, file="dev.csv")
    with pytest.raises(DataError, match=r"dev\.csv:2: unknown label 'maybe' \(column 'label'\); known: neg, pos"):
        ours.examples(row, 0, tokenizer, 16, labelled=True)


def test_a_training_label_outside_the_given_list_is_refused():
    with pytest.raises(DataError, match=r"unknown label 'maybe'.*known: neg, pos"):
        head(labels=("neg", "pos")).prepare(rows_of("neg", "maybe"))


def test_one_class_and_no_rows_are_refused():
    with pytest.raises(DataError, match="every training row has the label 'a'"):
        head().prepare(rows_of("a", "a"))
    with pytest.raises(DataError, match="no training rows"):
        head().prepare([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a",)}, "at least two"),
        ({"labels": ("a", "b", "a")}, "names a more than once"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1"),
        ({"class_weights": "even"}, "class_weights is 'even'; it must be balanced"),
        ({"class_weights": (1.0, 2.0)}, "2 weights, but the option labels names 0"),
        ({"class_weights": (1.0, -2.0), "labels": ("a", "b")}, "every weight must be greater than 0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)


def test_single_texts_and_pairs_are_laid_out_by_the_tokenizer_and_cut_longest_first(tokenizer):
    (row,) = records({"text": "a fine film", "other": "the end", "label": "x"})
    (single,) = head().examples(row, 7, tokenizer, 16, labelled=False)
    assert single.row_id == 7
    assert single.targets == {}
    assert tokenizer.convert_ids_to_tokens(single.input_ids) == ["[CLS]", "a", "fine", "film", "[SEP]"]
    pairs = head(text_pair="other")
    (pair,) = pairs.examples(row, 0, tokenizer, 16, labelled=False)
    expected = ["[CLS]", "a", "fine", "film", "[SEP]", "the", "end", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(pair.input_ids) == expected
    assert pair.token_type_ids.tolist() == [0] * 5 + [1] * 3
    (cut,) = pairs.examples(row, 0, tokenizer, 7, labelled=False)
    assert tokenizer.convert_ids_to_tokens(cut.input_ids) == ["[CLS]", "a", "fine", "[SEP]", "the", "end", "[SEP]"]


def test_an_empty_text_is_one_token_where_the_tokenizer_adds_none():
    class Bare:
        eos_token_id, bos_token_id, pad_token_id = None, None, 9

        def __call__(self, *args, **kwargs):
            return {"input_ids": [], "token_type_ids": []}

    (example,) = head().examples(records({"text": ""})[0], 0, Bare(), 8, labelled=False)
    assert example.input_ids.tolist() == [9]
    assert example.token_type_ids is None


def forward_of(rows, classifier, targets):
    family = SimpleNamespace(sequence_head=lambda model, x: classifier(x))
    batch = SimpleNamespace(targets=targets)
    return SimpleNamespace(model=None, family=family, batch=batch, sequence_rows=lambda: rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_equals_the_definition_at_labelled_sequences(smoothing):
    torch.manual_seed(0)
    rows, classifier = torch.randn(5, 6, requires_grad=True), torch.nn.Linear(6, 3)
    labels = {0: 2, 3: 0, 4: 1}
    target = SimpleNamespace(index=torch.tensor(list(labels)), labels=torch.tensor(list(labels.values())))
    forward = forward_of(rows, classifier, {"sequence_classification": target})
    loss = head(label_smoothing=smoothing).loss(forward, None, None)["sequence_classification"]
    expected, correct = 0.0, 0
    for i, y in labels.items():
        log_p = classifier(rows[i]).log_softmax(-1)
        expected += (-(1 - smoothing) * log_p[y] - smoothing * log_p.mean()).item()
        correct += int(log_p.argmax()) == y
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert (loss.num_targets, int(loss.num_correct)) == (3, correct)


@pytest.mark.parametrize(("given", "weights"), [("balanced", [4 / 6, 4 / 2]), ((0.5, 3.0), [0.5, 3.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_weigh_as_asked(given, weights, smoothing):
    ours = head(labels=("a", "b"), class_weights=given, label_smoothing=smoothing)
    facts = ours.prepare(rows_of("a", "b", "a", "a"))
    assert facts == {"labels": ["a", "b"], "class_weights": pytest.approx(weights)}
    ours.load(facts)
    torch.manual_seed(0)
    logits, labels, expected = torch.randn(4, 2), [0, 1, 0, 0], 0.0
    for x, y in zip(logits, labels, strict=True):
        log_p = x.log_softmax(-1).tolist()
        mass = [smoothing / 2 + (1 - smoothing) * (i == y) for i in range(2)]
        expected -= sum(w * m * p for w, m, p in zip(weights, mass, log_p, strict=True))
    loss, _ = ours.loss_of(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_sums_to_zero():
    rows = torch.randn(2, 6, requires_grad=True)
    loss = head().loss(forward_of(rows, None, {}), None, None)["sequence_classification"]
    loss.total.backward()
    assert (loss.num_targets, loss.total.item()) == (0, 0.0)


def test_decode_gives_label_score_and_all_scores():
    ours = head(labels=("neg", "pos", "so-so"))
    logits = torch.tensor([0.0, 2.0, -1.0])
    prediction = ours.decode([logits], None, 5)
    weights = [math.exp(x) for x in (0.0, 2.0, -1.0)]
    assert prediction.label == "pos"
    assert prediction.row_id == 5
    assert prediction.score == pytest.approx(weights[1] / sum(weights))
    assert prediction.scores == pytest.approx(
        {name: w / sum(weights) for name, w in zip(("neg", "pos", "so-so"), weights, strict=True)}
    )


def test_build_compares_classes_with_labels():
    ours = head(labels=("a", "b"))
    assert ours.build(SimpleNamespace(config=SimpleNamespace(num_labels=2)), None) is None
    with pytest.raises(ConfigError, match="has 3 classes, but there are 2 labels: a, b"):
        ours.build(SimpleNamespace(config=SimpleNamespace(num_labels=3)), None)


def test_metrics_are_of_this_heads_labels_and_targets():
    metrics = head(labels=("a", "b")).metrics()
    assert metrics.labels == ["a", "b"]
    assert metrics.target == "sequence_classification"
    assert head().default_metric in metrics.compute()


def test_real_rows_of_sst2(shared_data, tokenizer):
    path = shared_data / "sst2_glue" / "test.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = list(read_records([str(path)], builtin_sources()))
    assert len(rows) == 872
    with pytest.raises(DataError, match=r"test\.tsv:\d+: there is no column 'text'; columns found: sentence, label"):
        head().prepare(rows)
    ours = head(text="sentence", labels=("negative", "positive"))
    assert ours.prepare(rows) == {"labels": ["negative", "positive"]}
    made = [ours.examples(row, i, tokenizer, 64, labelled=True)[0] for i, row in enumerate(rows)]
    positive = sum(int(e.targets["sequence_classification"].labels[0]) for e in made)
    assert positive == sum(row.fields["label"] == "1" for row in rows) == 444
