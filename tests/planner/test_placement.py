"""Ranks as launchers really place them, against what the layout wants."""

import pytest

from model.layout import Layout
from planner import placement
from planner.planning import cluster_machine, own_step
from recipes.registry import ROOT, load

RECIPE = load("18b")  # tensor degree 8, planned for nodes of 8
MACHINE = cluster_machine(RECIPE.cluster)


def block(world: int, room: int) -> list[str]:
    return [f"n{rank // room}" for rank in range(world)]


def cyclic(world: int, hosts: int) -> list[str]:
    return [f"n{rank % hosts}" for rank in range(world)]


def test_the_groups_of_a_layout_by_hand() -> None:
    groups = Layout(tp=2, pp=2, ulysses=2).groups(16)
    assert groups["tensor"][:3] == [[0, 1], [2, 3], [4, 5]]
    assert groups["ulysses"][:3] == [[0, 2], [1, 3], [4, 6]]
    assert groups["data"] == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert groups["pipeline"][:2] == [[0, 8], [1, 9]]


def test_ranks_node_by_node_are_well_placed() -> None:
    assert placement.spreads(Layout(tp=8, pp=2), block(32, 8)) == []
    assert placement.spreads(Layout(tp=4, ulysses=2), block(32, 8)) == []
    assert placement.spreads(Layout(), cyclic(32, 4)) == []  # data ranks may be anywhere


def test_cyclic_ranks_scatter_every_tensor_group() -> None:
    (found,) = placement.spreads(Layout(tp=8), cyclic(32, 4))
    assert (found.axis, found.spread, found.groups, found.together) == ("tensor", 4, 4, 2)
    assert (found.ranks, found.hosts) == (tuple(range(8)), ("n0", "n1", "n2", "n3"))


def test_odd_slots_scatter_some() -> None:
    """A hostfile with 4 + 8 + 4 slots: ranks 0-7 are 4 + 4, ranks 8-15 too."""
    (found,) = placement.spreads(Layout(tp=8), ["a"] * 4 + ["b"] * 8 + ["c"] * 4)
    assert (found.spread, found.groups, found.together, found.hosts) == (2, 2, 4, ("a", "b"))
    (found,) = placement.spreads(Layout(tp=8), ["a"] * 8 + ["b"] * 4 + ["c"] * 4)
    assert (found.spread, found.groups, found.ranks[0]) == (1, 2, 8)


def test_ulysses_ranks_are_named_where_tensor_ranks_are_well_placed() -> None:
    hosts = ["a"] * 2 + ["b"] * 4 + ["a"] * 2
    (found,) = placement.spreads(Layout(tp=2, ulysses=2), hosts)
    assert (found.axis, found.ranks, found.together) == ("ulysses", (0, 2), 1)
    assert placement.spreads(Layout(tp=2, ulysses=4), block(16, 4)) == []  # larger than a node: it has to be


def test_the_cost_is_that_of_the_network() -> None:
    assert MACHINE is not None
    layout, step = RECIPE.layout, own_step(RECIPE, ROOT / RECIPE.engine, 32)
    assert layout.tp == 8
    (halves,) = placement.spreads(layout, ["a"] * 4 + ["b"] * 8 + ["c"] * 8 + ["d"] * 8 + ["e"] * 4)
    (singles,) = placement.spreads(layout, cyclic(32, 8)[:32])
    worse, worst = placement.slowdown(step, MACHINE, halves), placement.slowdown(step, MACHINE, singles)
    assert halves.together == 4 and singles.together == 1
    assert 1.05 < worse < worst
    (said,) = placement.findings(layout, cyclic(32, 4), step, MACHINE)
    assert not said.spoils and "4 of 4 tensor groups" in said.line and "srun --distribution=block" in said.line
    assert "times the time of a step" in said.line
    (said,) = placement.findings(layout, block(32, 4), step, None)
    assert "lower layout.tp to 4 or less, or give each node 8 ranks" in said.line and "planner" not in said.line


def test_thousands_of_ranks_take_no_time() -> None:
    (found,) = placement.spreads(Layout(tp=8, pp=35), cyclic(2240, 280))
    assert (found.spread, found.groups, found.together) == (280, 280, 1)


@pytest.mark.parametrize("layout", [Layout(tp=2, pp=2), Layout(pp=4), Layout(tp=2, ulysses=2)])
def test_every_rank_is_in_one_group_of_each_axis(layout: Layout) -> None:
    for groups in layout.groups(16).values():
        assert sorted(rank for group in groups for rank in group) == list(range(16))
