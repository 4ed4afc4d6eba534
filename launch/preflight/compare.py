"""What is wrong among the machines of a run, from what they told. Pure: nothing here asks a machine. Imports no torch.

Each function makes one check of what all ranks, or the first ranks of all machines, said.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.preflight.node import Node, Storage
from planner.finding import Check, Finding, few
from planner.hardware import GIGA, find
from support.errors import UserError

MEBI = 2**20
USED_MIB = 1024  # on a GPU that nobody uses: what the driver takes, and less
LARGE_SAVE_SHARE = 0.05  # of a run's time; where the interval is chosen by Young's formula, it is below it


def gpus(nodes: Sequence[Node], gpu: str, per_node: int) -> Check:
    """Whether the GPUs are there, free, well, and as described: a catalogue's name (empty: any), so many a node."""
    known = [(node, board) for node in nodes for board in node.gpus.boards]
    if not known:
        missing = () if gpu in ("", "cpu") else (_no_gpus(nodes, gpu),)
        return Check("GPUs", "none", missing)
    kinds = Counter((board.name, board.memory) for _, board in known)
    (name, memory), _ = kinds.most_common(1)[0]
    found: list[Finding | None] = [_mute(nodes), _few_boards(nodes, per_node), _other_kind(name, gpu)]
    odd = [f"{node.host} GPU {b.index} is {b.name}" for node, b in known if (b.name, b.memory) != (name, memory)]
    if odd:
        found.append(Finding(f"{few(odd)}, the others are {name}; take machines with the same GPUs"))
    used = [(f"{node.host} GPU {b.index}", b.used) for node, b in known if b.used > USED_MIB]
    if used:
        where, most = few([place for place, _ in used]), max(size for _, size in used) / 1024
        line = f"memory is used on {where}, up to {most:.1f} GiB, before a rank begins"
        found.append(Finding(f"{line}; end the processes there that nvidia-smi lists"))
    found += _unwell(nodes)
    seen = f"{len(known):,} {name} of {memory / 1024:.0f} GiB on {len(nodes):,} machines"
    return Check("GPUs", seen, tuple(each for each in found if each))


def _no_gpus(nodes: Sequence[Node], gpu: str) -> Finding:
    why = nodes[0].gpus.problem if nodes else "no machine told"
    return Finding(f"there is no GPU, and {gpu} was planned for ({why}); a run here computes on the CPU", False)


def _mute(nodes: Sequence[Node]) -> Finding | None:
    mute = [node for node in nodes if node.gpus.problem]
    line = f"no GPU can be asked on {few([node.host for node in mute])}: {mute[0].gpus.problem}" if mute else ""
    return Finding(f"{line}; repair the driver there or leave the machine out") if line else None


def _few_boards(nodes: Sequence[Node], per_node: int) -> Finding | None:
    needed = {node.host: max(node.ranks, per_node) for node in nodes}
    short = [node for node in nodes if not node.gpus.problem and len(node.gpus.boards) < needed[node.host]]
    if not short:
        return None
    first = short[0]
    line = f"{first.host} has {len(first.gpus.boards)} GPUs for {needed[first.host]}"
    more = f", and {len(short) - 1:,} more machines have too few" if short[1:] else ""
    return Finding(f"{line}{more}; leave it out, or start as many ranks as there are GPUs")


def _other_kind(name: str, gpu: str) -> Finding | None:
    if gpu in ("", "cpu"):
        return None
    try:
        same = find(name, nearest=True).kind == find(gpu).kind
    except UserError:
        same = False
    line = f"the GPUs are {name}, and the plan is for {gpu}"
    return None if same else Finding(f"{line}; plan with --gpu of what is there, or give another --cluster", False)


def _unwell(nodes: Sequence[Node]) -> list[Finding]:
    """Errors of memory, lost clocks, and what the kernel's log says."""
    every = [(f"{node.host} GPU {board.index}", board) for node in nodes for board in node.gpus.boards]
    ecc = [place for place, board in every if board.ecc]
    failed = [place for place, board in every if board.remap_failed]
    pending = [place for place, board in every if board.remap_pending and not board.remap_failed]
    slow = [(place, board.slow) for place, board in every if board.slow]
    xids = [(node.host, node.gpus.xids) for node in nodes if node.gpus.xids]
    found = []
    if ecc:
        found.append(Finding(f"uncorrected ECC errors on {few(ecc)}; reset these GPUs or leave the machines out"))
    if failed:
        found.append(Finding(f"memory rows could not be remapped on {few(failed)}; have these GPUs replaced"))
    if pending:
        found.append(Finding(f"memory rows wait to be remapped on {few(pending)}; reset these GPUs", False))
    if slow:
        where = few([place for place, _ in slow])
        line = f"the clock is held down on {where} ({', '.join(slow[0][1])})"
        found.append(Finding(f"{line}; look at cooling and power there", False))
    if xids:
        line = f"the kernel's log has GPU errors on {few([host for host, _ in xids])}: {xids[0][1][-1]}"
        found.append(Finding(f"{line}; look it up in NVIDIA's list of Xids, and leave the machine out", False))
    return found


def memory(nodes: Sequence[Node], peak: float, offloaded: float) -> Check:
    """Whether the fullest rank fits into what is free; bytes of a rank, and of what it keeps on the host."""
    found = []
    on_gpu = any(node.gpus.boards for node in nodes)
    on_host = offloaded if on_gpu else peak
    tight = [node for node in nodes if node.memory < on_host * node.ranks]
    if tight:
        need, have = on_host * tight[0].ranks / GIGA, tight[0].memory / GIGA
        line = f"{few([node.host for node in tight])}: {have:.1f} GB of memory are free and the ranks need {need:.1f}"
        found.append(Finding(f"{line}; end what else runs there, or start fewer ranks"))
    free = [((b.memory - b.used) * MEBI, f"{node.host} GPU {b.index}") for node in nodes for b in node.gpus.boards]
    least, where = min(free, default=(0, ""))
    if free and least < peak:
        line = f"the fullest rank needs {peak / GIGA:.1f} GB by the planner, and {where} has {least / GIGA:.1f} free"
        found.append(Finding(f"{line}; a smaller batch.micro_batch, or what stagecraft plan --search finds"))
    room = f"{least / GIGA:,.1f} GB free on the fullest GPU" if free else ""
    host = f"{min((node.memory for node in nodes), default=0) / GIGA:,.1f} GB free on a host"
    seen = f"the fullest rank needs {peak / GIGA:,.3g} GB; {room or host}"
    return Check("memory", seen, tuple(found))


def names(nodes: Sequence[Node], master: str) -> Check:
    """Whether names stand for addresses that other machines can use."""
    if len(nodes) < 2:
        return Check("names and network", f"one machine; rank 0 is at {master}")
    found = []
    own = [node.host for node in nodes if not _reachable(node.network.addresses)]
    away = [node.host for node in nodes if not _reachable(node.network.master)]
    if own:
        line = f"the own name of {few(own)} is no address that others reach"
        found.append(Finding(f"{line}; mend /etc/hosts there (no 127.0.1.1), or set NCCL_SOCKET_IFNAME", False))
    if away:
        line = f"{master}, where rank 0 is, is no address that others reach on {few(away)}"
        found.append(Finding(f"{line}; give a name or address that all machines resolve alike (--master_addr)"))
    sizes = Counter(node.network.mtu for node in nodes if node.network.mtu)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = [node for node in nodes if node.network.mtu not in (0, usual)]
        line = f"the MTU of {odd[0].network.interface} is {odd[0].network.mtu} on {few([node.host for node in odd])}"
        found.append(Finding(f"{line}, and {usual} elsewhere; set the same everywhere", False))
    links = few(list(dict.fromkeys(node.network.interface or "?" for node in nodes)))
    return Check("names and network", f"rank 0 is at {master}; by {links}, MTU {few(list(sizes))}", tuple(found))


def _reachable(addresses: Sequence[str]) -> bool:
    known = [ipaddress.ip_address(each.partition("%")[0]) for each in addresses]
    return any(not each.is_loopback for each in known)


def saves(folder: Path, found: Sequence[Storage], size: float, interval: Callable[[float], float]) -> Check:
    """Whether there is room for two checkpoints of `size` bytes, and whether a save is quick enough.

    The speed is that of all machines, which wrote at once; `interval` has the seconds between two saves (0: not known)
    at a speed in GB/s.
    """
    good = [each for each in found if not each.problem and each.seconds > 0]
    if not good:
        return Check("room and speed of saves", "nothing could be written", skipped=True)
    findings, free = [], min(each.free for each in good)
    speed = sum(each.written / each.seconds for each in good)
    if free < 2 * size:
        line = f"{folder} has {free / GIGA:,.1f} GB free, and two checkpoints take {2 * size / GIGA:,.1f}"
        findings.append(Finding(f"{line}; free some, or give another --run-dir"))
    save, every = size / speed, interval(speed / GIGA)
    if every and save / (save + every) > LARGE_SAVE_SHARE:
        line = f"a save takes {save:,.0f} s at the {speed / GIGA:.2f} GB/s that were written"
        line += f", every {every:,.0f} s"
        findings.append(Finding(f"{line}; take faster storage, or raise intervals.save_minutes", False))
    seen = f"{free / GIGA:,.1f} GB free, {speed / GIGA:.2f} GB/s: {save:,.2g} s a checkpoint of {size / GIGA:,.3g} GB"
    return Check("room and speed of saves", seen, tuple(findings))


def data(hosts: Sequence[str], found: Sequence[Storage], asked: int) -> Check:
    """Whether the prepared data that rank 0 sees is seen everywhere."""
    bad = [(host, each.missing) for host, each in zip(hosts, found, strict=True) if each.missing]
    findings: tuple[Finding, ...] = ()
    if bad:
        line = f"{few([host for host, _ in bad])} does not see prepared data: {few(bad[0][1])}"
        findings = (Finding(f"{line}; prepare it on storage that all machines mount there"),)
    seen = f"{asked} prepared folders are seen everywhere" if asked else "none is prepared yet: the first start does it"
    return Check("prepared data", "see below" if bad else seen, findings)
