"""The conformance of strategies: what a sound one may do, and every broken promise named."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tunecore import hookimpl
from tunecore.errors import ConfigError
from tunecore.registry import NoOptions
from tunecore.strategies.full import Full
from tunecore.testing import assert_plugin_conforms


class Scaled(Full):
    """Watches the loss, and trains the classifier as a factor of its first weights: observes, multiplies, exports."""

    name = "mine"

    def __init__(self, options):
        super().__init__(options)
        self.worst = 0.0

    def prepare(self, model, family):
        model.classifier.factor = nn.Parameter(torch.ones(()))
        return model

    def observe(self, metrics, progress):
        self.worst = max(self.worst, metrics.get("loss", 0.0))

    def multiplier(self, progress):
        return 1.0 / (1.0 + self.worst)

    def state_dict(self):
        return {"worst": self.worst}

    def load_state_dict(self, state):
        self.worst = state["worst"]

    def export(self, model, tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "classifier.factor"}

    def restore(self, model):
        del model.classifier.factor
        return model


def conforms(**members):
    factory = type("Broken", (Scaled,), members)

    def tunecore_register_strategies(register):
        register("mine", factory, NoOptions)

    assert_plugin_conforms(SimpleNamespace(tunecore_register_strategies=hookimpl(tunecore_register_strategies)))


def test_a_sound_strategy_passes():
    conforms()


def _global_draw(self, model, family):
    with torch.no_grad():
        model.classifier.weight.fill_(random.random())
    return Scaled.prepare(self, model, family)


def _another_model_s_weights(self, model, tensors):
    made = Scaled.export(self, model, tensors)
    return {**made, "classifier.bias": made["classifier.bias"] + 1}


def _in_place(self, model, tensors):
    with torch.no_grad():
        model.classifier.bias.add_(1)
    return Scaled.export(self, model, tensors)


def _times(self, metrics, progress):
    self.worst += random.random()


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ({"state_dict": lambda self: {"worst": 0.0}}, AssertionError, "it makes other plans, or another rate"),
        ({"state_dict": lambda self: {"worst": torch.ones(1)}}, AssertionError, "is not JSON"),
        ({"observe": _times}, AssertionError, "saw the same numbers have different states"),
        ({"multiplier": lambda self, progress: -1.0}, ConfigError, "multiplies the learning rate by -1.0"),
        ({"prepare": _global_draw}, AssertionError, "draw from torch's generator only"),
        ({"export": lambda self, model, tensors: tensors}, AssertionError, "must give the tensors of the model as"),
        ({"export": _another_model_s_weights}, AssertionError, "changed 'classifier.bias', whose name stays"),
        ({"export": _in_place}, AssertionError, "changed the model"),
        ({"restore": lambda self, model: model}, AssertionError, "must undo what prepare"),
        ({"name": "yours"}, AssertionError, "its name is 'yours'"),
    ],
)
def test_a_broken_strategy_is_named_with_what_it_broke(members, error, message):
    with pytest.raises(error, match=message):
        conforms(**members)
