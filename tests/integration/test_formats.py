"""The formats people have, to a fine-tuned classifier: files, columns by any name, ``datasets`` objects."""

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tunecore import Engine
from tunecore.errors import DataError
from tunecore.spool import as_paths, class_names

OPTIONS = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "progress": False, "report": False, "threads": 1}


@pytest.fixture
def engine(reviews):
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    texts = [row["text"] for row in reviews]
    return Engine.from_scratch("bert", size="tiny", text=texts, vocab_size=300, max_length=16, overrides=small)


def write_table(path, rows, delimiter):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write(path, rows):
    if path.suffix in (".csv", ".tsv"):
        write_table(path, rows, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def saved_labels(folder):
    """The labels as the saved model has them: for us, and for transformers."""
    config = json.loads((folder / "final/config.json").read_text())
    labels = config["tunecore"]["head"]["facts"]["labels"]
    assert [config["id2label"][str(i)] for i in range(len(labels))] == labels
    return labels


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl", "r.jsonl.gz", "r.parquet"])
@pytest.mark.parametrize("numbers", [False, True])
def test_every_kind_of_file_gives_the_same_run(engine, reviews, tmp_path, name, numbers):
    rows = [{"sentence": r["text"], "stars": int(r["label"] == "pos") if numbers else r["label"]} for r in reviews]
    head = {"sequence_classification": {"text": "sentence", "label": "stars"}}
    path = write(tmp_path / name, rows)
    result = engine.finetune(path, eval=path, test=path, head=head, output_dir=tmp_path / "run", **OPTIONS)
    assert saved_labels(tmp_path / "run") == (["0", "1"] if numbers else ["neg", "pos"])
    assert result.metrics["test/accuracy"] == result.metrics["eval/accuracy"]
    assert engine.predict(["a fine film"])[0].label in saved_labels(tmp_path / "run")
    wanted = engine.evaluate(rows)["loss"]
    assert result.metrics["test/loss"] == pytest.approx(wanted), "the rows of a file are those in memory"


def test_numbers_are_ordered_by_value_and_a_table_with_gaps_has_whole_ones(engine, tmp_path):
    rows = [{"text": f"text {n}", "label": n} for n in (10, 9, 2, 10, 9, 2)]
    rows.append({"text": "no label counts here", "label": None})
    path = write(tmp_path / "r.parquet", rows[:-1])
    engine.finetune(path, eval_fraction=0, output_dir=tmp_path / "run", **OPTIONS)
    assert saved_labels(tmp_path / "run") == ["2", "9", "10"]
    with pytest.raises(DataError, match=r"label \(column 'label'\) is missing"):
        engine.finetune(rows, eval_fraction=0, output_dir=tmp_path / "other", **OPTIONS)


class ClassLabel:
    """As in the package ``datasets``."""

    def __init__(self, names):
        self.names, self.num_classes = names, len(names)


class Stand:
    """What a ``datasets.Dataset`` shows: rows as dicts, columns by name, ``features``; it is no Sequence."""

    def __init__(self, rows, **features):
        self.rows, self.features = rows, features

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


NAMES = ["positive", "negative"]


def numbered(reviews):
    return [{"text": r["text"], "label": int(r["label"] == "neg")} for r in reviews]


def stand_in(reviews):
    rows = [{"text": r["text"], "label": np.int64(r["label"])} for r in numbered(reviews)]
    return Stand(rows, text=object(), label=ClassLabel(NAMES))


def real(reviews):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_list(numbered(reviews), features=features)


def streamed(reviews):
    return real(reviews).to_iterable_dataset()


@pytest.mark.parametrize("make", [stand_in, real, streamed])
def test_a_datasets_object_gives_rows_and_label_names(engine, reviews, tmp_path, make):
    data = make(reviews)
    engine.finetune(data, eval=make(reviews), output_dir=tmp_path / "run", **OPTIONS)
    assert saved_labels(tmp_path / "run") == NAMES, "in the order of the feature, not sorted"
    spooled = [json.loads(line) for line in (tmp_path / "run/data/train.jsonl").read_text().splitlines()]
    assert [row["label"] for row in spooled] == [NAMES[r["label"]] for r in numbered(reviews)]
    measured = engine.evaluate(make(reviews))
    assert measured["labels"] == NAMES
    assert measured["loss"] == pytest.approx(engine.evaluate(spooled)["loss"])
    assert engine.predict("a dull play")[0].label in NAMES


def test_a_set_with_other_class_numbers_means_the_same_names(engine, reviews, tmp_path):
    engine.finetune(stand_in(reviews), eval=stand_in(reviews), output_dir=tmp_path / "run", **OPTIONS)
    swapped = Stand([{**r, "label": 1 - int(r["label"])} for r in stand_in(reviews)], label=ClassLabel(NAMES[::-1]))
    assert engine.evaluate(swapped)["loss"] == pytest.approx(engine.evaluate(stand_in(reviews))["loss"])


def test_labels_given_by_hand_win_over_the_features(engine, reviews, tmp_path):
    head = {"sequence_classification": {"labels": ["negative", "positive"]}}
    engine.finetune(stand_in(reviews), head=head, eval_fraction=0, output_dir=tmp_path / "run", **OPTIONS)
    assert saved_labels(tmp_path / "run") == ["negative", "positive"]


def test_class_numbers_in_lists_and_no_class(tmp_path):
    class ListOf:
        feature = ClassLabel(["O", "B-PER"])

    rows = [{"tags": [0, 1], "label": -1, "other": 5}]
    data = Stand(rows, tags=ListOf(), label=ClassLabel(["a", "b"]), other=object())
    (path,) = as_paths(data, tmp_path, "train")
    assert json.loads(Path(path).read_text()) == {"tags": ["O", "B-PER"], "label": None, "other": 5}
    assert class_names(data, "label") == ["a", "b"] and class_names(data, "other") is None
    assert class_names(rows, "label") is None and class_names(Stand(rows), "label") is None


def test_text_of_a_datasets_object_is_pretrained_on(engine, topics, tmp_path):
    data = Stand([{"text": text} for text in topics[:20]], text=object())
    options = {**OPTIONS, "evaluation": {"max_rows": 4}}
    assert engine.pretrain(data, output_dir=tmp_path / "run", **options).steps == 2


def test_several_sets_or_a_table_of_columns_are_not_taken_for_rows(engine, reviews, tmp_path):
    """Iterating over them gives names, which would be trained on as if they were texts."""
    for data, hint in (
        ({"train": stand_in(reviews), "test": stand_in(reviews)}, "Give one of them: data['train']"),
        ({"text": ["a"], "label": ["b"]}, "Columns become rows"),
    ):
        with pytest.raises(DataError, match=re.escape(hint)):
            engine.finetune(data, output_dir=tmp_path / "run", **OPTIONS)
    frame = type("DataFrame", (), {"iterrows": None, "__iter__": lambda self: iter(["text", "label"])})()
    with pytest.raises(DataError, match="to_dict"):
        engine.finetune(frame, output_dir=tmp_path / "run", **OPTIONS)
