"""Whether the ranks lie where the layout wants them: who sends most shares a node. Imports no torch.

Tensor ranks send several times in each block, Ulysses ranks a little less. Inside a node they do it over its link,
which is several times as fast as the network. A pipeline's neighbours send little, data ranks once a step.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from model.layout import Layout
from planner.finding import Finding, few
from planner.timing import Machine, step_time
from planner.work import Work


@dataclass(frozen=True)
class Spread:
    """An axis whose groups do not all lie in one node, though they could.

    `spread` of `groups` groups lie on several hosts; `ranks` are the first such group, on `hosts`; `together` is how
    many ranks of the most scattered group share a host at most, `room` the ranks of the largest host.
    """

    axis: str
    spread: int
    groups: int
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    together: int
    room: int


def spreads(layout: Layout, hosts: Sequence[str]) -> list[Spread]:
    """The axes that are badly placed. `hosts` has the host of each rank.

    Ulysses groups that are larger than the largest node have to be spread, and are not named; tensor groups should not
    be that large.
    """
    groups, found = layout.groups(len(hosts)), []
    room = max(Counter(hosts).values())
    for axis, needed in (("tensor", layout.tp), ("ulysses", layout.tp * layout.ulysses)):
        on = [[hosts[rank] for rank in group] for group in groups[axis]]
        bad = [number for number, names in enumerate(on) if len(set(names)) > 1]
        if bad and (needed <= room or axis == "tensor"):
            first = groups[axis][bad[0]]
            together = min(max(Counter(on[number]).values()) for number in bad)
            names = tuple(dict.fromkeys(on[bad[0]]))
            found.append(Spread(axis, len(bad), len(on), tuple(first), names, together, room))
    return found


def slowdown(step: Work, machine: Machine, spread: Spread) -> float:
    """How many times as long a step takes, by the planner, where that axis goes over the network."""
    near = spread.together * (step.tp if spread.axis == "ulysses" else 1)
    # As if a node had only the ranks that are together, and their part of its network.
    network = machine.network * near / machine.gpus_per_node
    apart = dataclasses.replace(machine, gpus_per_node=near, network=network)
    return float(step_time(step, apart).seconds / step_time(step, machine).seconds)


def findings(layout: Layout, hosts: Sequence[str], step: Work, machine: Machine | None) -> list[Finding]:
    """A warning for each axis that is badly placed, with its cost where the hardware is known."""
    return [Finding(_line(each, step, machine), spoils=False) for each in spreads(layout, hosts)]


def _line(spread: Spread, step: Work, machine: Machine | None) -> str:
    cost = ""
    if machine is not None:
        cost = f"; the planner expects {slowdown(step, machine, spread):.2f} times the time of a step"
    remedy = "number the ranks node by node (srun --distribution=block), with a multiple of the degree on each node"
    if spread.axis == "tensor" and len(spread.ranks) > spread.room:
        remedy = f"lower layout.tp to {spread.room} or less, or give each node {len(spread.ranks)} ranks"
    return (
        f"{spread.spread:,} of {spread.groups:,} {spread.axis} groups lie on several hosts, such as ranks "
        f"{few(spread.ranks)} on {few(spread.hosts)}: they send over the network{cost}; {remedy}"
    )
