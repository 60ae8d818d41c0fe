"""Every kind of adapter keeps tunecore's contract for strategies, its saved model included; mistakes are named."""

from __future__ import annotations

import pytest
import tunecore_peft
from tunecore_peft.adapters import known_kinds
from tunecore_peft.lora import Lora, LoraOptions
from tunecore_peft.peft_strategy import Peft, PeftOptions

from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import assert_plugin_conforms, make_model, make_tokenizer
from tunecore.training.plans import combine_plans
from tunecore.types import ParamPlan, Progress

START = Progress(0, 10, 0.0, 1.0)
HEADS = ("bert.pooler.", "classifier.", "pre_classifier.", "score.")
LORA = [
    {}, {"target_modules": ["all-linear"], "r": 2, "alpha": 1.0}, {"use_dora": True, "dropout": 0.3},
    {"target_modules": ["*.layer.1.*.dense", "query"], "use_rslora": True, "train": ["*.embeddings.LayerNorm.*"]},
]  # fmt: skip
KINDS = {
    "ia3": {}, "loha": {"r": 2}, "lokr": {"r": 2}, "oft": {"oft_block_size": 8}, "boft": {"boft_block_size": 4},
    "hra": {"r": 4}, "fourierft": {"n_frequency": 10}, "delora": {"r": 2}, "lora": {"bias": "none"},
}  # fmt: skip


@pytest.mark.parametrize("options", LORA, ids=str)
def test_lora_keeps_the_contract(options):
    assert_plugin_conforms(tunecore_peft, options={"lora": options})


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_kinds_keep_the_contract(kind):
    targets = {} if kind in ("ia3", "lora") else {"target_modules": ["query", "output.dense"]}
    assert_plugin_conforms(tunecore_peft, options={"peft": {"type": kind, "config": KINDS[kind], **targets}})


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "distilbert", "llama", "bart"])
def test_adapters_and_heads_learn_and_nothing_else(family):
    task = {"t5": "span_corruption", "bart": "denoising"}.get(family, "sequence_classification")
    model = make_model([task], make_tokenizer(family), family)
    before = {name for name, _ in model.named_parameters()}
    strategy = Lora(LoraOptions(target_modules=("all-linear",), r=2))
    assert strategy.prepare(model, FAMILIES[family]) is model
    names = [name for name, _ in model.named_parameters()]
    plans = combine_plans(dict.fromkeys([*names, "tasks.mine.weight"], ParamPlan()), [strategy], START)
    learning = {name for name, plan in plans.items() if plan.trainable}
    heads = {name for name in before if name.startswith(HEADS)}
    assert learning == {name for name in names if ".lora_" in name} | heads | {"tasks.mine.weight"}
    assert all(parameter.requires_grad for parameter in model.parameters())  # what is frozen, plans say
    assert {name.replace(".base_layer", "") for name in names if ".lora_" not in name} == before


def test_targets_are_ends_of_names_and_globs_never_regexes():
    def wrapped(*targets):
        model = make_model(["sequence_classification"], make_tokenizer())
        Lora(LoraOptions(target_modules=targets)).prepare(model, FAMILIES["bert"])
        return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}

    layer = "bert.encoder.layer.{}.attention.self.query"
    assert wrapped("query") == {layer.format(0), layer.format(1)}
    assert wrapped("*.layer.1.*.query") == wrapped("layer.1.attention.self.query") == {layer.format(1)}
    assert len(wrapped("dense")) == 6  # of the blocks; the pooler learns as a whole
    for target in (".*query", "pooler.dense"):
        with pytest.raises(ConfigError, match=r"matches no module"):
            wrapped(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "lroa"}, "lora"),
        ({"type": "adalora"}, "cannot be trained here: it allots ranks"),
        ({"type": "vera"}, "share weights"),
        ({"type": "loha", "config": {"rank": 3}}, "takes no such options.*rank"),
        ({"type": "loha", "config": {"target_modules": "q.*"}}, "'target_modules' has no place there"),
        ({"type": "lora", "config": {"modules_to_save": ["classifier"]}}, "heads learn by themselves"),
    ],
)
def test_what_the_factory_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        Peft(PeftOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "prefix_tuning", "config": {"num_virtual_tokens": 3}}, "prompt learning"),
        ({"type": "lora", "target_modules": ("LayerNorm",)}, "not supported"),
        ({"type": "lora", "target_modules": ("word_embeddings",)}, "shares its weights with another part"),
    ],
)
def test_what_the_model_cannot_have(options, message):
    model = make_model(["masked_lm"], make_tokenizer())
    with pytest.raises(ConfigError, match=message):
        Peft(PeftOptions(**options)).prepare(model, FAMILIES["bert"])


def test_options_out_of_range():
    for options in ({"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": ()}):
        with pytest.raises(ConfigError):
            LoraOptions(**options)
    assert LoraOptions(target_modules="query").target_modules == ("query",)
    model = make_model(["masked_lm"], make_tokenizer())
    strategy = Lora(LoraOptions(train=("no.such",)))
    strategy.prepare(model, FAMILIES["bert"])
    with pytest.raises(ConfigError, match=r"lora\.train: the pattern 'no\.such'"):
        strategy.plan({"x": ParamPlan()}, START)
    assert {"lora", "ia3", "loha"} <= set(known_kinds())
