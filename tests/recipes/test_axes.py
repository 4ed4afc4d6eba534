"""Several values for fields: what is one value, what are many, and which points they make."""

import math

import pytest

from recipes.axes import MOST, Point, axes, draws, grid
from recipes.registry import load
from recipes.settings import override
from support.errors import UserError

TINY = load("tiny")


def values(*settings: str) -> dict[str, tuple[str, ...]]:
    return {axis.field: axis.values for axis in axes(TINY, settings)}


def test_commas_part_values_where_a_value_holds_none() -> None:
    found = values("optimizer.lr=1e-3, 3e-3", "seed=1,2", "data.tokeniser=bpe:300,bpe:500", "model.num_layers=2")
    assert list(found.values()) == [("1e-3", "3e-3"), ("1", "2"), ("bpe:300", "bpe:500"), ("2",)]


def test_a_field_is_given_again_where_its_values_hold_commas() -> None:
    betas = ("optimizer.betas=0.9,0.95", "optimizer.betas=0.9,0.99")
    found = values(*betas, "data.corpus=a=0.7,b=0.3", "data.corpus=a", "data.clean=", "data.clean=unicode,gopher")
    assert found["optimizer.betas"] == ("0.9,0.95", "0.9,0.99")
    assert found["data.corpus"] == ("a=0.7,b=0.3", "a")
    assert found["data.clean"] == ("", "unicode,gopher")
    assert override(TINY, list(grid(axes(TINY, betas), [])[1].settings)).optimizer.betas == (0.9, 0.99)
    assert values("seed=1", "seed=2,1") == {"seed": ("1", "2")}


def test_a_grid_has_every_combination_for_each_json() -> None:
    fields = axes(TINY, ["optimizer.lr=1,2", "seed=3,4", "batch.micro_batch=8"])
    plain = grid(fields, [])
    assert [point.settings[:2] for point in plain] == [
        *(("optimizer.lr=1", "seed=3"), ("optimizer.lr=1", "seed=4")),
        *(("optimizer.lr=2", "seed=3"), ("optimizer.lr=2", "seed=4")),
    ]
    assert grid(fields, ["a.json", "b.json"])[4] == Point(plain[0].settings, "b.json")
    assert grid([], []) == [Point(())]


def test_draws_are_different_begin_alike_and_are_even_in_their_logarithm() -> None:
    fields = axes(TINY, ["optimizer.lr=1e-4..1e-2", "model.num_layers=1,2"])
    many = draws(fields, ["a.json", "b.json"], 400, seed=7)
    assert draws(fields, ["a.json", "b.json"], 10, seed=7) == many[:10] and len(set(many)) == 400
    assert draws(fields, ["a.json", "b.json"], 10, seed=8) != many[:10]
    rates = [float(point.settings[0].removeprefix("optimizer.lr=")) for point in many]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert sum(rate < 1e-3 for rate in rates) == pytest.approx(200, abs=40)
    for half in ("model.num_layers=1", "b.json"):
        assert sum(half in (*point.settings, point.deepspeed_config) for point in many) == pytest.approx(200, abs=40)
    mean = math.exp(sum(map(math.log, rates)) / len(rates))
    assert mean == pytest.approx(1e-3, rel=0.2)


def test_draws_end_where_there_are_no_more() -> None:
    fields = axes(TINY, ["optimizer.lr=1,2,3", "seed=1,2"])
    assert set(draws(fields, [], 99, seed=1)) == set(grid(fields, []))
    assert len(draws(axes(TINY, ["optimizer.lr=1.00..1.02"]), [], 9, seed=1)) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optimizer.lr"], "write section.field=value,value"),
        (["optimizer.lr=0..1"], "both above 0"),
        (["optimizer.lr=2..1"], "both above 0"),
        (["optimizer.lr=a..b"], "both above 0"),
        (["optimizer.lr=1..2", "optimizer.lr=3"], "give a range alone"),
        (["optimizer.lr=3", "optimizer.lr=1..2"], "give a range alone"),
        (["optimizer.lr=1..2"], "add --random N"),
        (
            [f"seed={','.join(map(str, range(40)))}", f"batch.micro_batch={','.join(map(str, range(40)))}"],
            "1,600 points",
        ),
    ],
)
def test_what_is_no_grid_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid(axes(TINY, settings), [])


@pytest.mark.parametrize("count", [0, -1, MOST + 1])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"--random is {count}"):
        draws([], [], count, seed=1)
