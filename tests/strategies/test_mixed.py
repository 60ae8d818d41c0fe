"""Phases, the progress inside them, contradictions within and beside, and all that is handed on."""

from __future__ import annotations

import pytest

from tunecore.config import PluginsConfig
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins
from tunecore.strategies.mixed import Phase
from tunecore.training.plans import combine_plans, combined_multiplier, make_strategies, observe
from tunecore.types import Progress

REGISTRY = load_plugins(PluginsConfig(load=False)).registry


def make(*items, prepare=None):
    strategies = make_strategies(items, REGISTRY)
    if prepare is not None:
        for strategy in strategies:
            strategy.prepare(prepare.model, prepare.family)
    return strategies


def phases(*parts):
    return {"mixed": {"phases": list(parts)}}


def at(step, total=100, per_epoch=10):
    return Progress(step, total, step / per_epoch, total / per_epoch)


def test_the_head_first_then_all_layers_at_rates_of_their_own(small):
    decay = {"layerwise_lr_decay": {"decay": 0.5}}
    given = phases({"until": 0.3, "strategies": ["head_only"]}, {"strategies": [decay]})
    if small.name == "t5":  # which has no head
        given = phases({"until": 0.3, "strategies": ["freeze_layers"]}, {"strategies": [decay]})
    mixed = make(given, prepare=small)
    first, second = (make(item, prepare=small) for item in (given["mixed"]["phases"][0]["strategies"][0], decay))
    for step in range(101):
        alone = first if step < 30 else second
        assert combine_plans(small.plans, mixed, at(step)) == combine_plans(small.plans, alone, at(step))


def test_a_phase_counts_from_its_own_start(small):
    gradual = {"gradual_unfreezing": {"every": 1, "initial": 0}}
    mixed = make(phases({"until": 25, "strategies": ["freeze_layers"]}, {"strategies": [gradual]}), prepare=small)
    alone = make(gradual, prepare=small)
    for step in range(25, 101):
        wanted = combine_plans(small.plans, alone, at(step - 25, 75))
        assert combine_plans(small.plans, mixed, at(step)) == wanted, step


@pytest.mark.parametrize(("until", "total", "end"), [(0.5, 101, 51), (1.0, 7, 7), (2, 7, 2), (50, 7, 7), (None, 7, 7)])
def test_where_a_phase_ends(until, total, end):
    assert Phase(until=until).end(total) == end


def test_after_the_last_phase_everything_learns(small):
    mixed = make(phases({"until": 0.5, "strategies": ["freeze_layers"]}), prepare=small)
    assert combine_plans(small.plans, mixed, at(49)) != small.plans
    assert combine_plans(small.plans, mixed, at(50)) == combine_plans(small.plans, mixed, at(100)) == small.plans


def test_a_contradiction_in_a_phase_names_both(small):
    one, other = ({"layerwise_lr_decay": {"decay": d}} for d in (0.5, 0.9))
    with pytest.raises(ConfigError, match="'layerwise_lr_decay' and 'layerwise_lr_decay' both set lr_scale"):
        combine_plans(small.plans, make(phases({"strategies": [one, other]}), prepare=small), at(0))
    with pytest.raises(ConfigError, match="'mixed' and 'layerwise_lr_decay' both set lr_scale"):
        combine_plans(small.plans, make(phases({"strategies": [one]}), other, prepare=small), at(0))
    with pytest.raises(ConfigError, match=r"mixed\.phases\.0: strategies 'gradual_unfreezing' and 'head_only'"):
        make(phases({"strategies": ["head_only", "gradual_unfreezing"]}))


def test_the_multiplier_and_what_is_observed_belong_to_the_phase():
    adaptive = [{"adaptive_lr": {"window": 1, "patience": 1, "factor": f}} for f in (0.5, 0.1)]
    given = phases(*({"until": u, "strategies": [a]} for u, a in zip((4, 8), adaptive, strict=True)))
    mixed = make(given)
    rates = []
    for step in range(10):
        rates.append(combined_multiplier(mixed, at(step)))
        observe(mixed, {"loss": 1.0}, at(step + 1))
        resumed = make(given)
        resumed[0].load_state_dict(mixed[0].state_dict())
        mixed = resumed
    # The first reading of each is its best; from then on every one is one too many.
    assert rates == pytest.approx([1, 1, 0.5, 0.25, 1, 1, 0.1, 0.01, 1, 1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"strategies": ["head_only"]}, {"strategies": ["full"]}], "phases.0 has no until"),
        ([{"until": 0}], "until is 0"),
        ([{"until": 0.5}, {"until": 0.4}], "phases.1 ends at 0.4, not after 0.5"),
        ([{"until": 9}, {"until": 9}], "phases.1 ends at 9, not after 9"),
        ([{"till": 3}], "a phase has strategies and until"),
        ([{"strategies": ["head_onyl"]}], "phases.0: .*head_onyl"),
        ([{"strategies": [{"layerwise_lr_decay": {"decays": 1}}]}], "phases.0: .*'decays'"),
        ([{"until": 0.2}, {"strategies": ["reinit_top_layers"]}], "phases.1: .*before the first step"),
    ],
)
def test_what_a_list_of_phases_can_get_wrong(parts, message):
    with pytest.raises(ConfigError, match=message):
        make(phases(*parts))
