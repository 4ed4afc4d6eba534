"""How often a run saves: Young's formula by hand, what a recipe says instead, and what docs/reliability.md tells."""

import dataclasses
import re

import pytest

from planner.planning import saves
from planner.saving import saving
from recipes.recipe import Intervals, Recipe
from recipes.registry import ROOT, load

RECIPE = load("530b")


def every(minutes: float) -> Recipe:
    return dataclasses.replace(RECIPE, intervals=Intervals(save_minutes=minutes))


def test_530b_by_hand() -> None:
    """12 x 529.6e9 bytes at 20 GB/s are written, a 2,240th of them is copied at 5 GB/s; a micro-batch of 2,048 tokens
    goes forward through tensor groups of 8 at 100 TFLOP/s; 2,240 GPUs of 50,000 hours."""
    planned = saving(RECIPE, 2240)
    copied, proved = 12 * 529.6e9 / 2240 / 5e9, RECIPE.model.flops_per_token / 3 * 2048 / 8 / 100e12
    assert planned.write_seconds == pytest.approx(317.76, abs=0.01)
    assert planned.pause_seconds == pytest.approx(copied + proved, rel=1e-4) == pytest.approx(3.324, abs=1e-3)
    assert planned.failure_seconds == pytest.approx(80_357, abs=1)
    assert planned.interval_seconds == pytest.approx((2 * 3.324 * 80_357) ** 0.5, abs=0.5)
    assert planned.save_share == pytest.approx(3.324 / 730.9, abs=1e-5)
    assert planned.lost_share == pytest.approx((730.9 / 2 + 317.8) / 80_357, abs=1e-5)
    assert planned.new_share(605) >= 0.97


def test_a_stop_may_take_four_saves() -> None:
    recipe = load("530b")
    assert saving(recipe, 2240).stop_seconds == pytest.approx(4 * 12 * 529.6e9 / 20e9, rel=1e-3)
    assert saving(load("tiny"), 2).stop_seconds == 30.0


def test_a_slow_storage_rests_half_of_the_time() -> None:
    assert saving(RECIPE, 2240, storage_gb_s=5.0).interval_seconds == pytest.approx(2 * 4 * 317.76, abs=0.1)


@pytest.mark.parametrize("minutes", [6, 10, 15, 60])
def test_no_other_interval_loses_less(minutes: int) -> None:
    best, other = saving(RECIPE, 2240), saving(every(minutes), 2240)
    assert other.interval_seconds == 60 * minutes
    assert best.save_share + best.lost_share < other.save_share + other.lost_share


def test_a_recipe_s_steps_and_a_plan_s() -> None:
    """800 steps of 2 s are 1,600 s. Without a step's time nothing follows from steps."""
    recipe = load("tiny")
    assert recipe.intervals.save_every == 800
    assert saves(recipe, 2, 2.0)["save_minutes"] == pytest.approx(1600 / 60)
    assert saves(recipe, 2, 2.0)["save_steps"] == 800
    assert not {"save_minutes", "save_steps", "save_share"} & saves(recipe, 2, 0.0).keys()
    large = saves(RECIPE, 2240, 45.9)
    assert large["save_steps"] == pytest.approx(730.9 / 45.9, abs=0.01)


def test_the_table_of_the_docs_is_the_planner_s() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| ([\d.]+)[^|]* \| ([\d.]+) s \| ([\d.]+) min \|((?: [\d.]+% \|){4})$", text, re.MULTILINE)
    assert [storage for storage, *_ in rows] == ["20", "57.5", "100", "300"]
    for storage, write, interval, shares in rows:
        planned = saving(RECIPE, 2240, storage_gb_s=float(storage))
        told = (planned.save_share, planned.lost_share, 605 / planned.failure_seconds, planned.new_share(605))
        assert (write, interval) == (f"{planned.write_seconds:.0f}", f"{planned.interval_seconds / 60:.1f}")
        assert re.findall(r"[\d.]+%", shares) == [f"{100 * share:.1f}%" for share in told]
