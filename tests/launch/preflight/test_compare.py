"""Names, storage, data and traffic of hand-made machines, up to 2,240 ranks."""

from pathlib import Path

import pytest

from launch.preflight import compare, speeds, told
from launch.preflight.node import Network, Node, Storage
from launch.preflight.timing import Timing
from launch.preflight.traffic import groups_of
from model.layout import Layout
from planner.finding import Check
from planner.planning import cluster_machine
from recipes.recipe import Cluster
from training.facts import Facts

FOLDER = Path("/shared/runs")


def lines(check: Check) -> list[str]:
    return [each.line for each in check.findings]


def node(number: int, own: str = "", master: str = "10.0.0.1", mtu: int = 9000) -> Node:
    return Node(f"n{number:03d}", 8, network=Network((own or f"10.0.1.{number % 250}",), (master,), "eth0", mtu))


def test_names_that_others_reach_are_fine() -> None:
    check = compare.names([node(number) for number in range(280)], "n000 port 29500")
    assert (check.state, check.seen) == ("ok", "rank 0 is at n000 port 29500; by eth0, MTU 9000")
    assert compare.names([node(0, own="127.0.1.1", master="127.0.0.1")], "localhost").state == "ok"  # one machine


def test_names_that_mean_the_machine_itself_are_said() -> None:
    machines = [node(0), node(1, own="127.0.1.1"), node(2, master="127.0.0.1"), node(3, mtu=1500), node(4)]
    own, away, mtu = lines(compare.names(machines, "n000"))
    assert own.startswith("the own name of n001 is no address that others reach; mend /etc/hosts there")
    assert away.startswith("n000, where rank 0 is, is no address that others reach on n002; ")
    assert mtu.startswith("the MTU of eth0 is 1500 on n003, and 9000 elsewhere; ")
    unknown = Node("n001", 8, network=Network((), (), "", 0))
    assert compare.names([node(0), unknown], "n000").state == "fail"


def written(count: int, speed: float = 1e9, free: float = 1e12) -> list[Storage]:
    return [Storage("", int(free), int(speed / 4), 0.25)] * count


def test_room_for_two_checkpoints_and_quick_saves() -> None:
    good = compare.saves(FOLDER, written(4), 100e9, lambda speed: 3600.0)
    assert (good.state, good.seen) == ("ok", "1,000.0 GB free, 4.00 GB/s: 25 s a checkpoint of 100 GB")
    (line,) = lines(compare.saves(FOLDER, written(4, free=150e9), 100e9, lambda speed: 3600.0))
    assert line.startswith("/shared/runs has 150.0 GB free, and two checkpoints take 200.0; ")
    slow = compare.saves(FOLDER, written(4, speed=1e8), 100e9, lambda speed: 3600.0 * speed / 0.4)
    assert slow.state == "warn" and lines(slow)[0].startswith("a save takes 250 s at the 0.40 GB/s that were written")
    assert compare.saves(FOLDER, written(4, speed=1e8), 100e9, lambda speed: 0.0).state == "ok"
    assert compare.saves(FOLDER, [Storage("it cannot be read")], 1.0, lambda speed: 0.0).state == "skipped"


def test_prepared_data_that_a_machine_does_not_see_are_named() -> None:
    (line,) = lines(compare.data(["a", "b"], [Storage(), Storage(missing=("/data/x",))], 2))
    assert line.startswith("b does not see prepared data: /data/x; ")
    assert compare.data(["a", "b"], [Storage(), Storage()], 2).state == "ok"


HOSTS = [f"n{rank // 8:03d}" for rank in range(2240)]
LAYOUT = Layout(tp=8, pp=35)


def timings(groups: dict[str, list[list[int]]], slow: dict[str, float]) -> list[Timing]:
    """All groups reduce at 10 GB/s, those with a rank of a slow host so many times slower."""
    found = []
    for axis, every in groups.items():
        for number, ranks in enumerate(every):
            factor = max([1.0, *(slow.get(HOSTS[rank], 1.0) for rank in ranks)])
            seconds = factor * 2 * (len(ranks) - 1) / len(ranks) * 1e9 / 10e9
            found += [Timing(axis, number, 10**9, seconds / (1 + (rank == ranks[0])), 1e-5) for rank in ranks]
    return found


def test_the_groups_that_are_measured() -> None:
    groups = groups_of(LAYOUT, HOSTS)
    assert {axis: len(every) for axis, every in groups.items()} == {
        "tensor": 280,
        "data": 280,
        "pipeline": 64,
        "all": 1,
        "neighbours": 140,
        "other neighbours": 140,
    }  # those of a node are the tensor ranks'
    assert groups_of(Layout(), ["a", "a"]) == {"data": [[0, 1]]} and groups_of(Layout(), ["a"]) == {}
    three = groups_of(Layout(), ["a", "b", "c"])
    assert [three[axis] for axis in speeds.NEIGHBOURS] == [[[0, 1]], [[1, 2]], [[2, 0]]]


def test_equal_groups_have_nothing_to_say() -> None:
    groups = groups_of(LAYOUT, HOSTS)
    machine = cluster_machine(Cluster("a100-80gb", 280))
    measured = timings(groups, {})
    found = {each["axis"]: each for each in speeds.speeds(groups, measured, LAYOUT, machine)}
    assert found["tensor"]["gb_per_second"] == pytest.approx(10) == found["all"]["slowest_gb_per_second"]
    assert (found["tensor"]["groups"], found["tensor"]["ranks"], found["tensor"]["microseconds"]) == (280, 8, 10)
    assert found["pipeline"]["planned_gb_per_second"] is None
    assert found["tensor"]["planned_gb_per_second"] == pytest.approx(300 * 0.827)
    assert found["data"]["planned_gb_per_second"] == pytest.approx(200 * 0.923 / 8)
    without = speeds.speeds(groups, measured, LAYOUT, None)
    assert speeds.check(groups, measured, HOSTS, without).state == "ok"
    (line, *_) = lines(speeds.check(groups, measured, HOSTS, list(found.values())))
    assert line.startswith("tensor groups reduce at 10 GB/s, and the planner counts on 248; look at NCCL_DEBUG")


def test_a_slow_machine_is_found_among_280() -> None:
    groups = groups_of(LAYOUT, HOSTS)
    measured = timings(groups, {"n007": 4.0})
    check = speeds.check(groups, measured, HOSTS, speeds.speeds(groups, measured, LAYOUT, None))
    assert check.state == "warn"
    machine, tensor, *_ = lines(check)
    assert machine == (
        "n007 reduces with its neighbours at 2.5 GB/s, the median of 280 machines is 10; look at its network "
        "adapters, or leave it out"
    )
    assert tensor.startswith("tensor ranks 56, 57, 58, 59 and 4 more on n007 reduce at 2.5 GB/s, the median of 280 ")
    measured = timings(groups, {"n007": 40.0})
    assert speeds.check(groups, measured, HOSTS, speeds.speeds(groups, measured, LAYOUT, None)).state == "fail"
    assert speeds.check(groups, measured, HOSTS, [], gpus=False).state == "warn"  # a busy core, perhaps


def test_what_another_version_tells_is_read_as_far_as_it_goes() -> None:
    known = {"facts": {"rank": 3, "host": "b", "alike": {"torch": "2.0"}}, "node": {"nothing": "known"}}
    assert told.read(3, known) == told.Told(Facts(3, "b", {"torch": "2.0"}))
    assert told.read(3, None).facts.host == "?"
