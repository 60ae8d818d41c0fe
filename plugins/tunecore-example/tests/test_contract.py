from __future__ import annotations

import numpy as np
import pytest
import torch
import tunecore_example
from tunecore_example.freeze_embeddings import FreezeEmbeddings, FreezeEmbeddingsOptions
from tunecore_example.shuffled_tokens import ShuffledTokens, ShuffledTokensOptions
from tunecore_example.text_regression import TextRegression, TextRegressionOptions
from tunecore_example.token_counter import TokenCounter

from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError, DataError
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import assert_plugin_conforms, make_corpus, make_model, make_tokenizer, tiny_records
from tunecore.types import ParamPlan, Progress, Record

START = Progress(0, 10, 0.0, 1.0)


def test_the_plugin_keeps_the_contract():
    assert_plugin_conforms(tunecore_example, records={"text_regression": tiny_records((0.5, 2.0, -1.0))})


def test_shuffled_tokens_marks_exactly_what_moved(tmp_path):
    corpus = make_corpus(make_tokenizer(), tmp_path, unit="document")
    objective = ShuffledTokens(ShuffledTokensOptions(rate=0.3))
    for row in range(5):
        before = objective.assemble(corpus, row, PhiloxStream(row))
        after = objective.corrupt(before, corpus, PhiloxStream(row), START)
        assert sorted(after.input_ids) == sorted(before.input_ids)
        targets = after.targets["shuffled_tokens"]
        moved = np.flatnonzero(after.input_ids != before.input_ids)
        assert targets.index[targets.labels == 1].tolist() == moved.tolist()
        assert len(moved) > 0
        assert len(targets) == (~before.columns["special"]).sum()


def test_shuffled_tokens_refuses_a_rate_out_of_range():
    with pytest.raises(ConfigError, match="rate is 0"):
        ShuffledTokensOptions(rate=0)


def test_regression_standardises_and_gives_numbers_back():
    head = TextRegression(TextRegressionOptions())
    records = tiny_records((1.0, 5.0))
    assert head.prepare(records) == {"mean": 3.0, "std": 2.0}
    (example,) = head.examples(records[1], 1, make_tokenizer(), 32, labelled=True)
    assert example.targets["text_regression"].labels.tolist() == [1.0]
    assert head.decode([torch.tensor(-1.0)], None, 4).label == 1.0


@pytest.mark.parametrize("label", [None, "many", float("nan")])
def test_regression_names_the_row_without_a_number(label):
    with pytest.raises(DataError, match=r"dev\.csv:7: no number in the column 'label'"):
        TextRegression(TextRegressionOptions()).prepare([Record({"text": "x", "label": label}, "dev.csv", 7)])


def test_embeddings_freeze_until_the_share_of_the_run():
    model = make_model(["masked_lm"], make_tokenizer())
    strategy = FreezeEmbeddings(FreezeEmbeddingsOptions(until=0.5))
    strategy.prepare(model, FAMILIES["bert"])
    plans = {name: ParamPlan() for name, _ in model.named_parameters()}
    frozen = {name for name, plan in strategy.plan(plans, START).items() if not plan.trainable}
    assert frozen == {name for name in plans if name.startswith("bert.embeddings.")}
    assert strategy.plan(plans, Progress(5, 10, 0.5, 1.0)) == {}


def test_the_counter_goes_on_after_a_resumed_checkpoint():
    counter, resumed = TokenCounter(), TokenCounter()
    counter.tokens = 12
    resumed.load_state_dict(counter.state_dict())
    assert resumed.tokens == 12
