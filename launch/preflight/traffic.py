"""How fast the groups of a layout reduce: the very groups of the run, and those that find a slow machine."""

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from launch.preflight.timing import Timing
from model.layout import Layout

GPU_BYTES, CPU_BYTES, SMALL_BYTES = 64 * 2**20, 4 * 2**20, 8
TIMES = 3  # that each is measured; the quickest counts


def groups_of(layout: Layout, hosts: Sequence[str]) -> dict[str, list[list[int]]]:
    """The groups that are measured, by name; those of one rank, and those that have been measured already, are not.

    `node` are the ranks of each host. `neighbours` and `other neighbours` are the first ranks of two hosts each: a host
    that is slow in both is slow itself.
    """
    found = {**layout.groups(len(hosts)), "all": [list(range(len(hosts)))]}
    names = list(dict.fromkeys(hosts))
    first = [hosts.index(name) for name in names]
    if len(names) > 1:
        found["node"] = [[rank for rank, host in enumerate(hosts) if host == name] for name in names]
    if len(names) > 2:
        pairs = [[a, b] for a, b in zip(first, [*first[1:], first[0]], strict=True)]
        found["neighbours"] = pairs[: len(pairs) // 2 * 2 : 2]
        found["other neighbours"] = pairs[1 : len(pairs) // 2 * 2 : 2]
        if len(pairs) % 2:
            found["last neighbours"] = pairs[-1:]
    result: dict[str, list[list[int]]] = {}
    for name, groups in found.items():
        kept = [group for group in groups if len(group) > 1]
        if kept and kept not in result.values():
            result[name] = kept
    return result


def measure(axis: str, groups: Sequence[Sequence[int]], device: torch.device, seconds: float) -> Timing | None:
    """Measure this rank's group of an axis; None where it is in none. Collective in the group.

    Errors: `RuntimeError` where the group does not answer within `seconds`.
    """
    rank = dist.get_rank()
    number = next((number for number, ranks in enumerate(groups) if rank in ranks), None)
    limit = timedelta(seconds=seconds)
    if number is None:
        # torch names a group by its ranks and by how many groups a rank has: all have to make equally many.
        dist.new_group([rank], limit, use_local_synchronization=True)
        return None
    whole = len(groups[number]) == dist.get_world_size()
    group = None if whole else dist.new_group(list(groups[number]), limit, use_local_synchronization=True)
    large = GPU_BYTES if device.type == "cuda" else CPU_BYTES
    times = [_reduce(size, group, device, limit) for size in (large, SMALL_BYTES)]
    return Timing(axis, number, large, *times)


def _reduce(size: int, group: dist.ProcessGroup | None, device: torch.device, limit: timedelta) -> float:
    """Seconds of an all-reduce of so many bytes."""
    values, times = torch.zeros(size // 4, device=device), []
    for _ in range(TIMES + 1):  # the first one makes the connections
        began = time.perf_counter()
        work = dist.all_reduce(values, group=group, async_op=True)
        assert work is not None
        work.wait(limit)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
