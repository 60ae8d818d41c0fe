from __future__ import annotations

import re

import pytest

from tunecore.errors import ConfigError
from tunecore.strategies.freeze_layers import FreezeLayers, FreezeLayersOptions
from tunecore.training.plans import combine_plans
from tunecore.types import Progress

START = Progress(0, 10, 0.0, 1.0)


def frozen(small, **options):
    strategy = FreezeLayers(FreezeLayersOptions(**options))
    strategy.prepare(small.model, small.family)
    plans = [combine_plans(small.plans, [strategy], at) for at in (START, START._replace(step=9))]
    assert plans[0] == plans[1]
    return {name for name, plan in plans[0].items() if not plan.trainable}


def at_depths(small, *depths):
    return {name for name, depth in small.depths.items() if depth in depths}


def test_layers_by_word_number_and_range(small):
    top = small.blocks + 1
    assert frozen(small) == frozen(small, layers=("embeddings",)) == at_depths(small, 0)
    assert frozen(small, layers=(0,)) == frozen(small, layers=("0",)) == at_depths(small, 1)
    assert frozen(small, layers=(-1,)) == at_depths(small, small.blocks)
    assert frozen(small, layers=("embeddings", "0-1")) == at_depths(small, 0, 1, 2)
    assert frozen(small, layers=("1-",)) == at_depths(small, *range(2, top))
    assert frozen(small, layers=("head", 1)) == at_depths(small, 2, top)


def test_parameters_by_glob(small):
    norms = {n for n in small.plans if re.search(r"norm|\.ln_", n, re.IGNORECASE)}
    patterns = {"bert": ("*.LayerNorm.*",), "gpt2": ("*.ln_?.*",), "t5": ("*layer_norm.weight",)}[small.name]
    assert frozen(small, parameters=patterns) == norms and norms
    assert frozen(small, layers=("embeddings",), parameters=patterns) == norms | at_depths(small, 0)


def test_all_but_what_is_kept(small):
    """Biases alone (BitFit), where there are any, and the head's own module."""
    keep = ("tasks.*",) if small.name == "t5" else ("tasks.*", "*bias")
    assert frozen(small, parameters=("*",), keep=keep) == {
        name for name in small.plans if not name.startswith("tasks.") and not name.endswith("bias")
    }


def test_dots_and_brackets_are_not_those_of_a_regex(small):
    with pytest.raises(ConfigError, match=r"the pattern '\.\*bias' matches no parameter"):
        frozen(small, parameters=(".*bias",))


@pytest.mark.parametrize("options", [{"parameters": ("*", "no.such.*")}, {"keep": ("no.such.*",)}])
def test_a_pattern_that_matches_nothing_is_named(small, options):
    with pytest.raises(ConfigError, match=r"'no\.such\.\*' matches no parameter"):
        frozen(small, **options)


@pytest.mark.parametrize("item", [7, -9, "3-9", "9-"])
def test_a_block_that_is_not_there_is_named(small, item):
    with pytest.raises(ConfigError, match=rf"layers names {item!r}; this model has {small.blocks} blocks"):
        frozen(small, layers=(item,))


@pytest.mark.parametrize("item", ["top", "-3", "1-x", "1,2"])
def test_what_is_no_layer_is_said(small, item):
    with pytest.raises(ConfigError, match=f"layers has {item!r}"):
        frozen(small, layers=(item,))


def test_nothing_to_freeze_and_nothing_left(small):
    with pytest.raises(ConfigError, match="nothing would be frozen"):
        FreezeLayersOptions(layers=())
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        frozen(small, parameters=("*",))
