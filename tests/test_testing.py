"""The check that plugin authors run: every built-in passes, and every broken promise is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tunecore import hookimpl
from tunecore.config import PluginsConfig
from tunecore.conformance import check_component
from tunecore.errors import ConfigError, PluginError, TrainingError
from tunecore.heads.seq2seq import Seq2Seq, Seq2SeqOptions
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.plugins import load_plugins
from tunecore.registry import NoOptions
from tunecore.strategies.full import Full
from tunecore.testing import assert_plugin_conforms, tiny_corpus, tiny_model, tiny_records, tiny_tokenizer
from tunecore.types import LossSum, ParamPlan, Prediction, Targets

__all__ = ["tiny_corpus", "tiny_model", "tiny_tokenizer"]
BUILT_IN = load_plugins(PluginsConfig(load=False)).registry


@pytest.mark.parametrize("entry", list(BUILT_IN), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_built_in_keeps_the_contract(entry):
    check_component(BUILT_IN, entry, {}, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("masked_lm", {"whole_word": True, "mask_rate": 0.4, "mask_rate_end": 0.2}),
        ("masked_lm", {"label_smoothing": 0.1, "z_loss": 1e-3}),
        ("masked_lm", {"span": True, "mask_rate": 0.4}),
        ("causal_lm", {"label_smoothing": 0.1, "z_loss": 1e-3}),
        ("prefix_lm", {"prediction": "next_token"}),
        ("prefix_lm", {"bidirectional_share": 0.0, "mask_rate": 0.5}),
        ("sentence_order", {"swap_probability": 0.2}),
        ("next_sentence", {"random_probability": 0.2}),
    ],
)
def test_objectives_keep_the_contract_with_other_options(name, options):
    check_component(BUILT_IN, BUILT_IN.entry("objective", name), options, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sequence_classification", {"text_pair": "text_pair"}),
        ("sequence_classification", {"label_smoothing": 0.2, "class_weights": "balanced"}),
        ("sequence_classification", {"labels": ("yes", "no")}),
        ("multi_label_classification", {"positive_weights": "balanced", "text_pair": "text_pair"}),
        ("regression", {"loss": "huber", "min": 0.0, "max": 5.0}),
        ("sentence_embedding", {"loss": "cosine", "min": 0.0, "max": 5.0, "pooling": "pooler"}),
        ("sentence_embedding", {"loss": "info_nce", "group_size": 2, "negative": "target", "pooling": "first"}),
        ("sentence_embedding", {"group_size": 4, "normalize": False, "pooling": "last"}),
    ],
)
def test_heads_keep_the_contract_with_other_options(name, options):
    check_component(BUILT_IN, BUILT_IN.entry("head", name), options, None)


def test_the_fixtures_fit_together(tiny_model, tiny_corpus, tiny_tokenizer):
    assert type(tiny_model).__name__ == "BertForPreTraining"
    assert tiny_model.get_input_embeddings().weight.shape[0] == len(tiny_tokenizer)
    assert set(tiny_corpus[0].columns) == {"word_starts", "sentence_starts"}
    assert len(tiny_corpus) >= 8


class MyLM(MaskedLM):
    """masked_lm with an output layer of its own, to be broken one promise at a time."""

    name, losses = "mine", ("mine",)

    def build(self, model, family):
        return nn.Linear(model.config.hidden_size, model.config.vocab_size)

    def corrupt(self, example, corpus, stream, progress):
        made = super().corrupt(example, corpus, stream, progress)
        return dataclasses.replace(made, targets={"mine": made.targets["masked_lm"]})

    def loss(self, forward, module, stream):
        targets = forward.batch.targets["mine"]
        logits = module(forward.hidden()[targets.index])
        total = nn.functional.cross_entropy(logits, targets.labels, reduction="sum")
        return {"mine": LossSum(total, len(targets.labels))}


def plugin_of(kind, factory, options):
    def register(register):
        register(getattr(factory, "registered", "mine"), factory, options)

    register.__name__ = f"tunecore_register_{kind}"
    return SimpleNamespace(**{register.__name__: hookimpl(register)})


def objective(**members):
    return plugin_of("objectives", type("Broken", (MyLM,), members), MaskedLMOptions)


def test_the_objective_that_is_broken_below_is_sound():
    assert_plugin_conforms(objective())


def _refuse():
    raise ConfigError("not today")


def _mean(self, forward, module, stream):
    loss = MyLM.loss(self, forward, module, stream)["mine"]
    return {"mine": LossSum(loss.total / loss.num_targets, loss.num_targets)}


def _one_less(self, forward, module, stream):
    loss = MyLM.loss(self, forward, module, stream)["mine"]
    return {"mine": LossSum(loss.total, loss.num_targets - 1)}


def _constant(self, forward, module, stream):
    loss = MyLM.loss(self, forward, module, stream)["mine"]
    return {"mine": LossSum(loss.total * 0.0, loss.num_targets)}


def _in_place(self, example, corpus, stream, progress):
    made = MyLM.corrupt(self, example, corpus, stream, progress)
    example.input_ids[1] = 7
    return made


def _global_generator(self, example, corpus, stream, progress):
    made = MyLM.corrupt(self, example, corpus, stream, progress)
    ids = np.where(np.random.random(len(made)) < 0.5, 5, made.input_ids)
    return dataclasses.replace(made, input_ids=ids)


def _outside(self, example, corpus, stream, progress):
    made = MyLM.corrupt(self, example, corpus, stream, progress)
    targets = Targets(made.targets["mine"].index + 1000, made.targets["mine"].labels)
    return dataclasses.replace(made, targets={"mine": targets})


def _no_targets(self, example, corpus, stream, progress):
    return example


def _other_name(self, example, corpus, stream, progress):
    made = MyLM.corrupt(self, example, corpus, stream, progress)
    return dataclasses.replace(made, targets={"theirs": made.targets["mine"]})


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ({"loss": _mean}, AssertionError, "return sums over targets, never means"),
        ({"loss": _one_less}, TrainingError, "the batch announced"),
        ({"loss": _constant}, AssertionError, "gradient of norm 0"),
        ({"corrupt": _in_place}, AssertionError, "copy its arrays"),
        ({"corrupt": _global_generator}, AssertionError, "draw from the stream only"),
        ({"corrupt": _outside}, AssertionError, "point outside an example"),
        ({"corrupt": _no_targets}, AssertionError, "none of 8 examples has targets of its loss 'mine'"),
        ({"corrupt": _other_name}, AssertionError, "targets 'theirs', but its losses are"),
        ({"name": "yours"}, AssertionError, "its name is 'yours'"),
        ({"losses": ()}, AssertionError, "losses must be a tuple of names"),
        ({"build": lambda self, model, family: _refuse()}, AssertionError, "no family fits: .*not today"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, Mapping) else None,
)
def test_a_broken_objective_is_named_with_what_it_broke(members, error, message):
    with pytest.raises(error, match=message):
        assert_plugin_conforms(objective(**members))


@dataclasses.dataclass(frozen=True)
class OddOptions(MaskedLMOptions):
    device: object = torch.device("cpu")


def test_options_that_are_not_json_are_named():
    with pytest.raises(AssertionError, match="Options is not JSON"):
        assert_plugin_conforms(plugin_of("objectives", MyLM, OddOptions))


class Head(SequenceClassification):
    """The built-in head under its own loss name but registered as another."""

    registered, name = "theirs", "theirs"

    def build(self, model, family):
        return nn.Linear(32, len(self.labels))

    def _logits(self, forward, module):
        return module(forward.sequence_rows())

    def loss(self, forward, module, stream):
        targets = forward.batch.targets["sequence_classification"]
        logits = self._logits(forward, module)[targets.index]
        total = nn.functional.cross_entropy(logits, targets.labels, reduction="sum")
        return {"sequence_classification": LossSum(total, len(targets.labels))}

    def predict(self, forward, module):
        return self._logits(forward, module)


def head(**members):
    return plugin_of("heads", type("Broken", (Head,), members), SequenceClassificationOptions)


def test_the_head_that_is_broken_below_is_sound():
    assert_plugin_conforms(head(), records={"theirs": tiny_records(("a", "b", "c"))})


class Forgetful(Head):
    def load(self, facts):
        self._labels.take(tuple(reversed(facts["labels"])))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"predict": lambda self, f, m: self._logits(f, m)[:1]}, "one output for each sequence"),
        ({"decode": lambda self, raw, record, row_id: "yes"}, "decode\\(\\) must return"),
        ({"decode": lambda self, raw, record, row_id: Prediction("yes")}, "row 0 has row_id -1"),
        ({"default_metric": "bleu"}, "default_metric 'bleu' is none of"),
        ({"load": Forgetful.load}, "after load\\(facts\\) it makes other examples"),
        ({"prepare": lambda self, records: {"x": {1, 2}}}, "what prepare\\(\\) returns is not JSON"),
    ],
)
def test_a_broken_head_is_named_with_what_it_broke(members, message):
    with pytest.raises(AssertionError, match=message):
        assert_plugin_conforms(head(**members))


class Metrics:
    """Metrics that forget what other ranks counted."""

    def __init__(self):
        self.n = 0

    def update(self, raw, batch):
        self.n += batch.num_sequences

    def merge(self, others):
        pass

    def state(self):
        return self.n

    def compute(self):
        return {"accuracy": float(self.n)}


def test_metrics_that_do_not_merge_are_named():
    with pytest.raises(AssertionError, match="merged metrics differ"):
        assert_plugin_conforms(head(metrics=lambda self: Metrics()))


class Strategy(Full):
    name = "mine"


def strategy(**members):
    return plugin_of("strategies", type("Broken", (Strategy,), members), NoOptions)


def _alternating(self, plans, progress):
    self.calls = getattr(self, "calls", 0) + 1
    return {name: ParamPlan(lr_scale=1 / self.calls) for name in plans}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"plan": lambda self, plans, at: {n: ParamPlan(trainable=False) for n in plans}}, "nothing learns"),
        ({"plan": _alternating}, "other plans when it is asked again"),
        ({"state_dict": lambda self: {"x": torch.zeros(1)}}, "state_dict\\(\\) is not JSON"),
        ({"prepare": lambda self, model, family: None}, "prepare\\(\\) must return the model"),
    ],
)
def test_a_broken_strategy_is_named_with_what_it_broke(members, message):
    assert_plugin_conforms(strategy())
    with pytest.raises(AssertionError, match=message):
        assert_plugin_conforms(strategy(**members))


def test_a_plugin_that_does_not_load_is_a_plugin_error():
    misspelt = SimpleNamespace(tunecore_register_objectivs=hookimpl(lambda register: None))
    with pytest.raises(PluginError, match="tunecore_register_objectives"):
        assert_plugin_conforms(misspelt)


def writer(**members):
    """A head of a plugin that answers by text."""
    members = {"registered": "theirs", "name": "theirs", "losses": ("theirs",), "examples": renamed, **members}
    return plugin_of("heads", type("Broken", (Seq2Seq,), members), Seq2SeqOptions)


def renamed(self, record, row_id, tokenizer, max_length, *, labelled):
    """The built-in head's examples, their targets under the plugin's own name."""
    (example,) = Seq2Seq.examples(self, record, row_id, tokenizer, max_length, labelled=labelled)
    targets = {"theirs": example.targets["seq2seq"]} if example.targets else {}
    return [dataclasses.replace(example, targets=targets)]


def test_the_head_that_writes_and_is_broken_below_is_sound():
    assert_plugin_conforms(writer())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"prompt": lambda self, record, tokenizer, max_length: [1, 2]}, "prompt\\(\\) must give int64"),
        ({"prompt": lambda self, record, tokenizer, max_length: np.arange(40)}, "prompt\\(\\) must give int64"),
        ({"decode": lambda self, raw, record, row_id: raw[0].text}, "decode\\(\\) must return"),
    ],
)
def test_a_broken_head_that_writes_is_named_with_what_it_broke(members, message):
    # The examples are made from a prompt, too: only what is asked of the head itself is broken.
    sound = {"examples": lambda self, *a, **k: renamed(type("Sound", (Seq2Seq,), {})(self.options), *a, **k)}
    with pytest.raises(AssertionError, match=message):
        assert_plugin_conforms(writer(**sound, **members))
