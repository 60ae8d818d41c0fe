"""Weights of losses: an objective's, times its own factor for a loss, relative to its view where views take turns."""

from types import SimpleNamespace

import pytest
from fake_training import FakeFamily, FakeModel, make_config, make_fake_run
from torch import nn

from tunecore.training.unit import Task, TrainUnit


def unit(*tasks):
    """A unit of tasks given as (name, view, weight, loss factors)."""
    parts = [
        Task(name, SimpleNamespace(losses=tuple(factors), view=view, loss_weights=factors), nn.Linear(1, 1), weight)
        for name, view, weight, factors in tasks
    ]
    return TrainUnit(FakeModel(), FakeFamily(), parts)


MASKED = ("masked", "encoder", 3.0, {"masked": 1.0})
NEXT = ("next", "encoder", 1.0, {"next": 1.0})
REPLACED = ("replaced", "electra", 2.0, {"generator": 1.0, "replaced": 50.0})


def test_weights_and_shares():
    made = unit(MASKED, NEXT, REPLACED)
    assert made.weights == {"masked": 3.0, "next": 1.0, "generator": 2.0, "replaced": 100.0}
    assert made.view_weights == {"encoder": 4.0, "electra": 2.0}
    assert made.weights_within_views == {"masked": 0.75, "next": 0.25, "generator": 1.0, "replaced": 50.0}


@pytest.mark.parametrize(
    ("tasks", "views", "alternates"),
    [((MASKED, NEXT), "alternate", False), ((MASKED, REPLACED), "alternate", True),
     ((MASKED, REPLACED), "every_step", False)],
)  # fmt: skip
def test_weights_are_relative_only_where_views_take_turns(tmp_path, tasks, views, alternates):
    run = make_fake_run(make_config(tmp_path, views=views), unit=unit(*tasks))
    assert run.alternates is alternates
    assert run.loss_weights == (run.unit.weights_within_views if alternates else run.unit.weights)


def test_over_a_run_each_loss_counts_by_its_weight():
    """Share of steps times weight within the view is proportional to the weight, as when every step trains all."""
    made = unit(MASKED, NEXT, REPLACED)
    total = sum(made.view_weights.values())
    views = {"masked": "encoder", "next": "encoder", "generator": "electra", "replaced": "electra"}
    for name, weight in made.weights.items():
        assert made.view_weights[views[name]] / total * made.weights_within_views[name] == pytest.approx(weight / total)
