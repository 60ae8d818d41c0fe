from __future__ import annotations

import pytest

from tunecore.errors import ConfigError
from tunecore.registry import NoOptions
from tunecore.training.schedule import SCHEDULES, CosineOptions, constant, cosine, linear, warmup_steps, with_warmup


def curve(schedule, warmup, total):
    multiplier = with_warmup(schedule, warmup)
    return [multiplier(step, total) for step in range(total)]


def test_linear_after_a_share_of_warmup():
    eighths = [8, 7, 6, 5, 4, 3, 2, 1]
    assert curve(linear(NoOptions()), 0.2, 10) == pytest.approx([0.5, 1, *(n / 8 for n in eighths)])


def test_cosine_ends_near_its_floor():
    values = curve(cosine(CosineOptions(min_ratio=0.1)), 0, 1001)
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.1, abs=1e-4)
    assert values[500] == pytest.approx(0.55, abs=1e-2)
    assert values == sorted(values, reverse=True)


def test_constant():
    assert curve(constant(NoOptions()), 3, 6) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0, 10, 0), (0.06, 100, 6), (0.06, 10, 1), (1, 10, 1), (25, 10, 10), (0.999, 10, 10)]
)
def test_warmup_is_a_share_below_1_and_steps_from_1_on(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_no_step_has_a_rate_of_zero_or_above_the_peak(name, total):
    factory, options = SCHEDULES[name]
    for warmup in (0, 0.06, 1, 1000):
        assert all(0 < value <= 1 for value in curve(factory(options()), warmup, total))


def test_a_floor_out_of_range_is_an_error():
    with pytest.raises(ConfigError, match="min_ratio"):
        CosineOptions(min_ratio=1.5)
