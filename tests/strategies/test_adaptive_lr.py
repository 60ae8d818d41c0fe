"""The rule against torch's ReduceLROnPlateau, spikes, bounds, and a state that goes round in the middle."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunecore.errors import ConfigError
from tunecore.strategies.adaptive_lr import AdaptiveLR, AdaptiveLROptions
from tunecore.types import Progress, Strategy

AT = Progress(1, 100, 0.1, 10.0)


def scales(losses, seen="loss", **options):
    strategy = AdaptiveLR(AdaptiveLROptions(**options))
    found = []
    for loss in losses:
        strategy.observe({seen: loss, "grad_norm": 1.0}, AT)
        found.append(strategy.multiplier(AT))
    return found


def torchs(losses, mode, factor, patience, threshold, cooldown, min_scale):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor, patience - 1, threshold, "rel", cooldown, min_scale, eps=0.0
    )
    found = []
    for loss in losses:
        rule.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@given(
    losses=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60),
    falling=st.booleans(), factor=st.sampled_from([0.1, 0.5, 0.9]), patience=st.integers(1, 4),
    cooldown=st.integers(0, 3), min_scale=st.sampled_from([0.01, 0.3]), evaluation=st.booleans(),
)  # fmt: skip
def test_it_is_torch_s_rule(losses, falling, factor, patience, cooldown, min_scale, evaluation):
    name = "eval/x" if evaluation else "loss"
    ours = scales(
        losses, name, metric=f"-{name}" if falling else name, window=1, factor=factor, patience=patience,
        cooldown=cooldown, min_scale=min_scale, threshold=0.01,
    )  # fmt: skip
    theirs = torchs(losses, "min" if falling else "max", factor, patience, 0.01, cooldown, min_scale)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_reading_is_the_mean_of_a_window():
    losses = [5.0, 1.0, 3.0, 3.0, 1.0, 5.0, 2.0, 4.0]  # every window of 2 has the mean 3
    assert scales(losses, window=2, patience=2) == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_a_spike_lowers_the_rate_at_once_and_once():
    losses = [1.0] * 30 + [5.0, 5.0, 1.0] + [1.0] * 30 + [2.5] + [1.0] * 3
    found = scales(losses, window=1000, spike=2.0)
    assert found[:30] == [1.0] * 30 and found[30:63] == [0.5] * 33 and found[63:] == [0.25] * 4
    assert scales(losses, window=1000)[-1] == 1.0
    assert scales([1.0, 9.0, 1.0], window=1000, spike=2.0)[-1] == 1.0  # too early to tell


def test_a_step_that_was_left_out_is_a_spike():
    assert scales([math.nan, 1.0], window=10, spike=3.0) == [0.5, 0.5]
    assert scales([math.nan, 1.0], window=10) == [1.0, 1.0]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_the_state_goes_round_anywhere(cut):
    losses = [1.0 + 0.3 * math.sin(2.3 * i) + (4.0 if i == 33 else 0.0) for i in range(40)]
    options = {"window": 3, "patience": 2, "cooldown": 1, "spike": 2.0}
    whole, first = (AdaptiveLR(AdaptiveLROptions(**options)) for _ in range(2))
    assert isinstance(first, Strategy)
    for loss in losses[:cut]:
        first.observe({"loss": loss}, AT)
    second = AdaptiveLR(AdaptiveLROptions(**options))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for loss in losses[cut:]:
        second.observe({"loss": loss}, AT)
    for loss in losses:
        whole.observe({"loss": loss}, AT)
    assert second.state_dict() == whole.state_dict() and whole.multiplier(AT) < 0.5


def test_evaluations_and_steps_are_told_apart():
    strategy = AdaptiveLR(AdaptiveLROptions(metric="eval/accuracy", patience=1))
    strategy.observe({"eval/accuracy": 0.5, "eval/confusion_matrix": [[1]]}, AT)
    for _ in range(200):
        strategy.observe({"loss": 1.0}, AT)
    assert strategy.multiplier(AT) == 1.0
    strategy.observe({"eval/accuracy": 0.5}, AT)
    assert strategy.multiplier(AT) == 0.5
    with pytest.raises(ConfigError, match="'eval/accuracy'"):
        strategy.observe({"eval/f1": 0.5}, AT)


def test_a_training_metric_that_never_comes_is_an_error():
    strategy = AdaptiveLR(AdaptiveLROptions(metric="-loss/masked", window=5))
    with pytest.raises(ConfigError, match=r"loss/masked_lm"):
        for _ in range(6):
            strategy.observe({"loss": 1.0, "loss/masked_lm": 1.0}, AT)
    turns = AdaptiveLR(AdaptiveLROptions(metric="-loss/rare", window=5))
    for step in range(60):  # its view comes every twentieth step
        turns.observe({"loss": 1.0, "view/a": 1.0} | ({"loss/rare": 2.0} if step % 20 == 19 else {}), AT)
    assert turns.state_dict()["count"] == 3


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "-"}, {"window": 0}, {"patience": 0}, {"cooldown": -1}, {"factor": 1.0}, {"min_scale": 0},
        {"spike": 1},
    ],
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match="adaptive_lr"):
        AdaptiveLROptions(**options)
