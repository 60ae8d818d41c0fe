from __future__ import annotations

import pytest

from tunecore.errors import ConfigError
from tunecore.strategies.gradual_unfreezing import GradualUnfreezing, GradualUnfreezingOptions
from tunecore.training.plans import combine_plans
from tunecore.types import ParamPlan, Progress, Strategy

EPOCH = 7  # steps


def at(step, total=12 * EPOCH):
    return Progress(step, total, step / EPOCH, total / EPOCH)


def learning(small, step, total=12 * EPOCH, **options):
    """The depths that learn, all of each or none."""
    strategy = GradualUnfreezing(GradualUnfreezingOptions(**options))
    assert isinstance(strategy, Strategy) and strategy.prepare(small.model, small.family) is small.model
    plans = combine_plans(small.plans, [strategy], at(step, total))
    found = {depth: {plans[n].trainable for n in plans if small.depths[n] == depth} for depth in small.depths.values()}
    assert all(len(values) == 1 for values in found.values())
    assert all(plan in (ParamPlan(), ParamPlan(trainable=False)) for plan in plans.values())
    return {depth for depth, values in found.items() if values == {True}}


def test_one_block_more_each_epoch_from_the_top_and_embeddings_last(small):
    top = small.blocks + 1
    for epoch in range(small.blocks + 3):
        below = max(0, small.blocks - epoch)
        wanted = set(range(below, top + 1)) - set(range(1, below))
        for step in (epoch * EPOCH, epoch * EPOCH + EPOCH - 1):
            assert learning(small, step) == wanted - ({0} if epoch < small.blocks else set())


def test_by_steps_from_the_bottom_up_without_embeddings(small):
    options = {"every": 3, "unit": "step", "order": "bottom_up", "initial": 0, "embeddings": False}
    top = small.blocks + 1
    for step in range(3 * small.blocks + 5):
        assert learning(small, step, **options) == {top, *range(1, min(small.blocks, step // 3) + 1)}


def test_an_order_of_ones_own(small):
    options = {"order": ("embeddings", -1, 0), "unit": "step", "every": 2}
    top = small.blocks + 1
    joined = [{0}, {0}, {0, small.blocks}, {0, small.blocks}, {0, 1, small.blocks}, {0, 1, small.blocks}]
    assert [learning(small, step, **options) for step in range(6)] == [{top} | depths for depths in joined]
    assert learning(small, 80, **options) == {top, 0, 1, small.blocks}


def test_evenly_over_the_run(small):
    """With initial 1 there are as many to join as blocks; between two of them lies the same time."""
    total = 10 * (small.blocks + 1)
    for step in range(total):
        assert len(learning(small, step, total, every=None)) == 2 + step // 10


@pytest.mark.parametrize("every", [0.1, 0.3, 0.7])
def test_fractions_of_an_epoch_are_whole_steps(small, every):
    """An epoch of 10 steps: the block joins exactly at step every * 10 * k, whatever the fraction's rounding."""
    strategy = GradualUnfreezing(GradualUnfreezingOptions(every=every, initial=0))
    strategy.prepare(small.model, small.family)
    for step in range(60):
        wanted = min(small.blocks + 1, step // round(10 * every))
        assert len(strategy.learning(Progress(step, 60, step / 10, 6.0))) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"initial": -1}, "initial is -1"),
        ({"order": "sideways"}, "top_down or bottom_up"),
        ({"order": ("head", 1)}, "'head'"),
        ({"order": (1, 1)}, "nothing twice"),
        ({"order": ()}, "name something"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        GradualUnfreezingOptions(**options)


@pytest.mark.parametrize(("order", "message"), [((9,), "names block 9; this model has"), ((0, -4), "twice")])
def test_an_order_that_does_not_fit_the_model(small, order, message):
    if small.blocks != 4:
        order = (9,) if order == (9,) else (0, -2)
    with pytest.raises(ConfigError, match=message):
        GradualUnfreezing(GradualUnfreezingOptions(order=order)).prepare(small.model, small.family)
