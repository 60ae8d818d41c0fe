from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.registry import NoOptions
from tunecore.strategies.full import Full
from tunecore.strategies.head_only import HeadOnly
from tunecore.types import ParamPlan, Progress, Strategy

START = Progress(0, 10, 0.0, 1.0)
FAMILY = FAMILIES["bert"]


def tiny(cls):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )
    return cls(config)


def plans_of(model):
    return {name: ParamPlan(lr_scale=0.5) for name, _ in model.named_parameters()}


def test_full_changes_no_plan_and_no_model():
    model, strategy = tiny(BertForSequenceClassification), Full(NoOptions())
    assert isinstance(strategy, Strategy)
    assert strategy.prepare(model, FAMILY) is model
    assert strategy.plan(plans_of(model), START) == {}


def test_head_only_freezes_everything_but_pooler_classifier_and_task_modules():
    model, strategy = tiny(BertForSequenceClassification), HeadOnly(NoOptions())
    assert isinstance(strategy, Strategy)
    assert strategy.prepare(model, FAMILY) is model
    plans = plans_of(model) | {"tasks.mine.weight": ParamPlan()}
    after = {**plans, **strategy.plan(plans, START)}
    learning = {name for name, plan in after.items() if plan.trainable}
    assert learning == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
        "tasks.mine.weight",
    }
    assert all(plan.lr_scale == 0.5 for name, plan in after.items() if name != "tasks.mine.weight")


def test_head_only_keeps_shared_embeddings_frozen():
    model, strategy = tiny(BertForMaskedLM), HeadOnly(NoOptions())
    strategy.prepare(model, FAMILY)
    after = strategy.plan(plans_of(model), START)
    assert not after["bert.embeddings.word_embeddings.weight"].trainable
    assert {name for name in plans_of(model) if name not in after} == {
        "cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias",
    }


def test_head_only_without_a_head_is_refused():
    model, strategy = BertModel(tiny(BertModel).config, add_pooling_layer=False), HeadOnly(NoOptions())
    strategy.prepare(model, FAMILY)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        strategy.plan(plans_of(model), START)


@pytest.mark.parametrize("strategy", [Full(NoOptions()), HeadOnly(NoOptions())])
def test_state_goes_round(strategy):
    strategy.load_state_dict(strategy.state_dict())
    assert strategy.state_dict() == {}


def test_strategies_that_contradict_each_other_are_refused_before_a_run():
    from tunecore.config import PluginsConfig
    from tunecore.plugins import load_plugins
    from tunecore.training.plans import make_strategies

    registry = load_plugins(PluginsConfig(load=False)).registry
    for pair in (["full", "head_only"], ["gradual_unfreezing", "head_only"], ["freeze_layers", "full"]):
        for names in (pair, pair[::-1]):
            with pytest.raises(ConfigError, match=rf"'{pair[0]}'.*'{pair[1]}'|'{pair[1]}'.*'{pair[0]}'"):
                make_strategies(names, registry)
    assert [s.name for s in make_strategies(["gradual_unfreezing", "layerwise_lr_decay", "freeze_layers"], registry)]
