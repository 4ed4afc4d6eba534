"""What measured groups say: the speed of each axis, and the groups and machines that are slow. Imports no torch."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from launch.preflight.timing import Timing
from model.layout import Layout
from planner.finding import Check, Finding, few
from planner.hardware import GIGA
from planner.timing import Machine, axis_rate

SLOW, LOST = 2.0, 10.0  # times slower than the median: said; a run is not started
NEIGHBOURS = ("neighbours", "other neighbours", "last neighbours")


class Speed(TypedDict):
    """An axis as `--json` shows it: GB/s are those of a ring's links (bus bandwidth)."""

    axis: str
    groups: int
    ranks: int
    gb_per_second: float
    slowest_gb_per_second: float
    microseconds: float
    planned_gb_per_second: float | None


@dataclass(frozen=True)
class Measured:
    """The speed of each group of an axis, bytes/s, and seconds of 8 bytes, by the group's number."""

    rates: dict[int, float]
    small: dict[int, float]


def measured(groups: Sequence[Sequence[int]], timings: Sequence[Timing]) -> Measured:
    """A group is as slow as its slowest rank says."""
    slowest, small = dict[int, float](), dict[int, float]()
    rates = {}
    for each in timings:
        slowest[each.group] = max(each.seconds, slowest.get(each.group, 0.0))
        small[each.group] = max(each.small_seconds, small.get(each.group, 0.0))
        count = len(groups[each.group])
        rates[each.group] = 2 * (count - 1) / count * each.large / slowest[each.group]
    return Measured(rates, small)


def speeds(
    groups: Mapping[str, Sequence[Sequence[int]]], timings: Sequence[Timing], layout: Layout, machine: Machine | None
) -> list[Speed]:
    """A line for each axis that was measured."""
    found: list[Speed] = []
    for axis, every in groups.items():
        each = measured(every, [timing for timing in timings if timing.axis == axis])
        if each.rates:
            found.append(
                {
                    "axis": axis,
                    "groups": len(every),
                    "ranks": len(every[0]),
                    "gb_per_second": statistics.median(each.rates.values()) / GIGA,
                    "slowest_gb_per_second": min(each.rates.values()) / GIGA,
                    "microseconds": 1e6 * statistics.median(each.small.values()),
                    "planned_gb_per_second": planned(axis, len(every[0]), layout, machine),
                }
            )
    return found


def planned(axis: str, degree: int, layout: Layout, machine: Machine | None) -> float | None:
    """GB/s that the planner counts on for such a ring; None where the GPU is not known, or the plan has no such one."""
    strides = {"tensor": 1, "node": 1, "all": 1, "ulysses": layout.tp, "data": layout.tp}
    if machine is None or axis not in strides:
        return None
    return float(axis_rate(machine, degree, strides[axis], machine.gpu.rates.network)) / GIGA


def check(
    groups: Mapping[str, Sequence[Sequence[int]]],
    timings: Sequence[Timing],
    hosts: Sequence[str],
    found: Sequence[Speed],
    gpus: bool = True,
) -> Check:
    """Which groups, machines and axes are slow. Without GPUs none spoils a run: a busy core is slow now and then."""
    findings = [_slow_machines(groups, timings, hosts)]
    for axis, every in groups.items():
        if axis not in NEIGHBOURS:
            findings.append(_slow_groups(axis, every, timings, hosts))
    findings += [_below_plan(speed) for speed in found]
    whole = next((each for each in found if each["ranks"] == len(hosts)), found[-1] if found else None)
    seen = "one rank" if whole is None else f"all ranks {whole['gb_per_second']:.3g} GB/s"
    seen += "" if whole is None else f", {whole['microseconds']:,.0f} µs for 8 bytes"
    return Check("traffic", seen, tuple(replace(each, spoils=each.spoils and gpus) for each in findings if each))


def _slow_groups(
    axis: str, every: Sequence[Sequence[int]], timings: Sequence[Timing], hosts: Sequence[str]
) -> Finding | None:
    rates = measured(every, [timing for timing in timings if timing.axis == axis]).rates
    if len(rates) < 3:  # of two nobody knows which is the slow one
        return None
    median = statistics.median(rates.values())
    slow = sorted((rate, number) for number, rate in rates.items() if rate < median / SLOW)
    if not slow:
        return None
    rate, number = slow[0]
    where = few(list(dict.fromkeys(hosts[rank] for rank in every[number])))
    line = f"{axis} ranks {few(every[number])} on {where} reduce at {rate / GIGA:.3g} GB/s, the median of "
    line += f"{len(rates):,} groups is {median / GIGA:.3g}"
    more = f" ({len(slow) - 1:,} more groups are slow)" if slow[1:] else ""
    return Finding(f"{line}{more}; look at these links, or leave the machine out", spoils=rate < median / LOST)


def _slow_machines(
    groups: Mapping[str, Sequence[Sequence[int]]], timings: Sequence[Timing], hosts: Sequence[str]
) -> Finding | None:
    """A machine is as fast as it is with the better of its two neighbours."""
    best: dict[str, float] = {}
    for axis in NEIGHBOURS:
        every = groups.get(axis, [])
        for number, rate in measured(every, [each for each in timings if each.axis == axis]).rates.items():
            for rank in every[number]:
                best[hosts[rank]] = max(rate, best.get(hosts[rank], 0.0))
    if not best:
        return None
    median = statistics.median(best.values())
    slow = sorted((rate, host) for host, rate in best.items() if rate < median / SLOW)
    if not slow:
        return None
    names = few([host for _, host in slow])
    line = f"{names} reduces with its neighbours at {slow[0][0] / GIGA:.3g} GB/s, the median of "
    line += f"{len(best):,} machines is {median / GIGA:.3g}"
    return Finding(f"{line}; look at its network adapters, or leave it out", spoils=slow[0][0] < median / LOST)


def _below_plan(speed: Speed) -> Finding | None:
    plan = speed["planned_gb_per_second"]
    if plan is None or speed["gb_per_second"] >= plan / SLOW:
        return None
    line = f"{speed['axis']} groups reduce at {speed['gb_per_second']:.3g} GB/s, and the planner counts on {plan:.3g}"
    return Finding(f"{line}; look at NCCL_DEBUG=INFO for the transport, GPUDirect and the adapters in use", False)
