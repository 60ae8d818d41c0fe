"""The comparison reads the published files whole, measures both sides alike, and says which figure is whose."""

import pytest
import torch

from tunecore.heads.classification_metrics import ClassificationMetrics
from tunecore.heads.correlation import spearman


@pytest.fixture
def compare(benchmark_module):
    return benchmark_module("compare_finetune")


@pytest.mark.parametrize(
    ("name", "train", "held_out", "label"),
    [("sst2", 67349, 872, 1), ("cola", 8551, 1043, 1), ("mrpc", 4076, 1725, 1), ("stsb", 5749, 1500, 5.0)],
)
def test_every_row_of_the_published_files_is_read(compare, shared_data, name, train, held_out, label):
    task = compare.TASKS[name]
    rows = task.rows(shared_data, task.train, None)
    assert (len(rows), len(task.rows(shared_data, task.eval, None))) == (train, held_out)
    assert rows[0]["label"] == label and all(row["text"] for row in rows)
    assert set(rows[0]) == {"text", "label", *(["text_pair"] if len(task.texts) == 2 else [])}
    few = task.rows(shared_data, task.train, 10)
    assert len(few) == 10 and few[0] == rows[0] and few[5] == rows[train // 2]


def test_both_sides_are_measured_as_our_heads_are(compare):
    torch.manual_seed(0)
    outputs, labels = torch.randn(40, 2), torch.randint(0, 2, (40,))
    metrics = ClassificationMetrics(["0", "1"], "x")
    for true, predicted in zip(labels.tolist(), outputs.argmax(-1).tolist(), strict=True):
        metrics.matrix[true, predicted] += 1
    for name, ours in (("sst2", "accuracy"), ("cola", "mcc"), ("mrpc", "f1")):
        assert compare.measure(compare.TASKS[name], outputs, labels) == pytest.approx(metrics.compute()[ours], abs=1e-6)
    found = compare.measure(compare.TASKS["stsb"], outputs[:, :1], labels.float())
    assert found == pytest.approx(spearman(outputs[:, 0].double().numpy(), labels.double().numpy()), abs=1e-3)


def test_the_table_has_means_spreads_and_the_ratio(compare):
    outcomes = {
        compare.OURS: [compare.Outcome(0.8, 10.0), compare.Outcome(0.9, 20.0)],
        compare.THEIRS: [compare.Outcome(0.7, 20.0), compare.Outcome(0.8, 60.0)],
    }
    settings = compare.Settings("model", 2.0, 32, 5e-5, "fp32", 1)
    text = compare.table([compare.Compared(compare.TASKS["mrpc"], outcomes, 1000.0)], settings)
    assert "| MRPC | f1 | 0.8500 ± 0.0707 | 0.7500 ± 0.0707 | +0.1000 | 75 | 33 | 2.50x |" in text
