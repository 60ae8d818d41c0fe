from __future__ import annotations

import pytest

from tunecore.errors import ConfigError
from tunecore.strategies.layerwise_lr_decay import LayerwiseLRDecay, LayerwiseLRDecayOptions
from tunecore.training.plans import combine_plans
from tunecore.types import ParamPlan, Progress

START = Progress(0, 10, 0.0, 1.0)
HALF = {  # decay 0.5: depth -> scale, by hand
    "bert": {3: 1.0, 2: 0.5, 1: 0.25, 0: 0.125},
    "gpt2": {3: 1.0, 2: 0.5, 1: 0.25, 0: 0.125},
    "t5": {5: 1.0, 4: 0.5, 3: 0.25, 2: 0.125, 1: 0.0625, 0: 0.03125},
}


def test_each_layer_has_a_share_of_the_one_above(small):
    strategy = LayerwiseLRDecay(LayerwiseLRDecayOptions(decay=0.5))
    assert strategy.prepare(small.model, small.family) is small.model
    plans = combine_plans(small.plans, [strategy], START)
    assert plans == {n: ParamPlan(lr_scale=HALF[small.name][small.depths[n]]) for n in small.plans}


def test_a_wrapper_s_own_rates_are_kept_in_proportion(small):
    strategy = LayerwiseLRDecay(LayerwiseLRDecayOptions(decay=0.5))
    strategy.prepare(small.model, small.family)
    base = {name: ParamPlan(lr_scale=4.0, trainable=False) for name in small.plans}
    plans = combine_plans(base, [strategy], START)
    assert {n: p.lr_scale for n, p in plans.items()} == {n: 4 * HALF[small.name][small.depths[n]] for n in base}
    assert not any(plan.trainable for plan in plans.values())


def test_a_decay_of_one_changes_nothing(small):
    strategy = LayerwiseLRDecay(LayerwiseLRDecayOptions(decay=1.0))
    strategy.prepare(small.model, small.family)
    assert combine_plans(small.plans, [strategy], START) == small.plans


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ConfigError, match="decay is"):
        LayerwiseLRDecayOptions(decay=decay)
