"""How often a run saves: Young's formula by hand, and what a recipe says instead."""

import pytest

from planner.planning import saves
from planner.saving import saving
from recipes.recipe import Intervals
from recipes.registry import load

MODEL, BY_YOUNG = load("530b").model, Intervals()


def test_530b_by_hand() -> None:
    """12 x 529.6e9 bytes at 20 GB/s; 2,240 GPUs of 50,000 hours; sqrt(2 x 317.76 x 80,357) is 7,146 s."""
    planned = saving(MODEL, BY_YOUNG, 2240)
    assert planned.save_seconds == pytest.approx(317.76, abs=0.01)
    assert planned.failure_seconds == pytest.approx(80_357, abs=1)
    assert planned.interval_seconds == pytest.approx(7_146.2, abs=0.5)
    assert planned.save_share == pytest.approx(planned.lost_share) == pytest.approx(0.0445, abs=1e-4)


@pytest.mark.parametrize("minutes", [60, 110, 130, 240])
def test_no_other_interval_loses_less(minutes: int) -> None:
    best, other = saving(MODEL, BY_YOUNG, 2240), saving(MODEL, Intervals(save_minutes=minutes), 2240)
    assert other.interval_seconds == 60 * minutes
    assert best.save_share + best.lost_share < other.save_share + other.lost_share


def test_a_recipe_s_steps_and_a_plan_s() -> None:
    """800 steps of 2 s are 1,600 s. Without a step's time nothing follows from steps."""
    recipe = load("tiny")
    assert recipe.intervals.save_every == 800
    assert saves(recipe, 2, 2.0)["save_minutes"] == pytest.approx(1600 / 60)
    assert saves(recipe, 2, 2.0)["save_steps"] == 800
    assert not {"save_minutes", "save_steps", "save_share"} & saves(recipe, 2, 0.0).keys()
    large = saves(load("530b"), 2240, 45.9)
    assert large["save_steps"] == pytest.approx(7_146.2 / 45.9, abs=0.1)
