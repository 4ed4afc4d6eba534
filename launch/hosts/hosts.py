"""The hosts of a hostfile: whether a run can start on them, said in one line each, and its start."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from launch import local
from launch.clusters.description import Cluster, Hostfile
from launch.hosts.far import NO_PROJECT, Node, Nodes, command
from launch.hosts.near import Start, versions
from recipes.registry import ROOT
from support.errors import CrashedError, UserError

ANSWER_SECONDS = 30.0  # that a host may take to start Python, when it is reached; one that is down takes 10
SENT = (  # variables that ranks of other hosts get as they are here, by their beginnings
    *("NCCL_", "GLOO_", "UCX_", "FI_", "TORCH_", "PYTORCH_", "CUDA_DEVICE_", "CUDA_LAUNCH_", "CUBLAS_", "NVTE_"),
    *("OMP_", "MKL_", "KMP_", "DS_", "STAGECRAFT_", "WANDB_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "MLFLOW_"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PYTHON"),
)
REFUSALS = {  # what ssh says, and what to do
    "Permission denied": "ssh cannot log in without a password; give it your key: ssh-copy-id {host}",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key has changed; if that is right: ssh-keygen -R {host}",
    "Host key verification failed": "ssh does not know its host key; log in once and check it: ssh {host}",
    "Could not resolve": "there is no host of that name; correct the hostfile, or name it in /etc/hosts",
    "Connection refused": "no ssh server answers there; start sshd, or give its port in ~/.ssh/config",
    "timed out": "it does not answer; start it, or take its line out of the hostfile",
    "No route to host": "it does not answer; start it, or take its line out of the hostfile",
}


FOREIGN = {"pdsh": "pdsh", "openmpi": "ompi_info", "mpich": "mpirun"}  # launchers of DeepSpeed's: what they need here


@dataclass
class Hosts:
    """The devices of each host by its name, in the order of the ranks, and the `variables` that its ranks get.

    `setup` are lines of shell that each host runs before.

    `left_out` are hosts that the last look found unusable, and why; `meeting` is where ranks met had they been started
    then: an address and a port of the first host.
    """

    file: Hostfile
    devices: dict[str, list[int]]
    variables: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    meeting: tuple[str, int] = ("127.0.0.1", 0)

    @property
    def own(self) -> bool:
        """Whether our own starter starts the ranks."""
        return self.file.launcher not in FOREIGN

    @property
    def world_size(self) -> int:
        """Ranks that all hosts have room for."""
        return sum(map(len, self.devices.values()))

    def check(self, path: Path) -> None:
        """See that a run can live in `path` on all hosts. Errors: `UserError` with a line for each that is wrong."""
        tool = FOREIGN.get(self.file.launcher, "ssh")
        if not shutil.which(tool) and not (self.own and all(map(is_here, self.devices))):
            raise UserError(f"there is no {tool} here, with which the hosts are reached; install it")
        if not self.own:
            local.check_remote(["--run-dir", str(path)])
        self.look(path)
        if self.left_out:
            raise _NotReadyError([f"{host}: {why}" for host, why in self.left_out.items()])

    def words(self) -> list[str]:
        """What says to DeepSpeed's launcher where to start the ranks."""
        named = {"--include": self.file.include, "--exclude": self.file.exclude, "--ssh_port": self.file.ssh_port}
        more = [word for flag, value in named.items() if value for word in (flag, str(value))]
        meeting = {"MASTER_ADDR": self.meeting[0], "MASTER_PORT": self.meeting[1]}
        where = ["--hostfile", self.file.path, "--launcher", self.file.launcher, *more]
        if self.file.launcher == "openmpi":  # DeepSpeed has mpi4py find out, and takes the network eth0
            export = " ".join(f"-x {name}={value}" for name, value in meeting.items())
            return [*where, "--launcher_args", f"{export} --mca btl_tcp_if_include lo"]
        return [*where, *(word for name, value in meeting.items() for word in (f"--{name.lower()}", str(value)))]

    def lines(self) -> list[str]:
        """The command line that starts the node of each host, as a shell has it."""
        each = self.devices
        return [shlex.join(command(host, is_here(host), self.file.ssh_port, self.setup)) for host in each]

    def look(self, path: Path) -> int:
        """Find out which hosts can be used; returns how many ranks they have room for."""
        nodes = self._connected(path, list(self.devices))
        if nodes:
            self.meeting = _address(nodes), nodes[0].facts["port"]
        for node in nodes:
            node.close()
        return sum(len(devices) for host, devices in self.devices.items() if host not in self.left_out)

    def launch(
        self,
        path: Path,
        world: int,
        stop_seconds: float,
        inherited: tuple[int, ...] = (),
        output: int | None = None,
        wakes: int | None = None,
        words: Sequence[str] = (),
    ) -> Nodes:
        """Start `world` ranks on the first hosts that have room for them, but for those that are left out.

        They are those of the run in `path`, or run `words`: a module and its arguments.

        Errors: `CrashedError` where one of them cannot be used any more.
        """
        chosen = _first(world, {host: each for host, each in self.devices.items() if host not in self.left_out})
        nodes = self._connected(path, list(chosen), inherited)
        if self.left_out.keys() & chosen.keys() or sum(map(len, chosen.values())) < world:
            for node in nodes:
                node.close()
            whys = "; ".join(f"host {host}: {why}" for host, why in self.left_out.items())
            raise CrashedError(f"{whys or 'too few hosts are left'}")
        meeting = _address(nodes), nodes[0].facts["port"]
        for number, node in enumerate(nodes):
            place = (chosen, number, *meeting)
            start = Start(str(path.absolute()), *place, self.variables, stop_seconds, list(words))
            node.talk.say(start=asdict(start), folder=str(Path.cwd()))
        return Nodes(nodes, path, world, output, wakes)

    def _connected(self, path: Path, hosts: Sequence[str], inherited: tuple[int, ...] = ()) -> list[Node]:
        """Connect to all hosts at once; what is wrong with one goes to `left_out`. Returns the others."""
        with _seen(path) as look:
            nodes = [Node(host, is_here(host), self.file.ssh_port, self.setup, inherited) for host in hosts]
            for node in nodes:
                node.talk.say(**look)
            until = time.monotonic() + ANSWER_SECONDS
            waiting = list(nodes)
            while waiting and time.monotonic() < until:
                time.sleep(0.02)
                waiting = [node for node in waiting if not _answered(node)]
        self.left_out = {host: why for host, why in self.left_out.items() if host not in hosts}
        own, named = versions(), dict[str, str]()
        for node in nodes:
            why = _wrong(node, len(self.devices[node.host]), own, path) or _twice(node, named)
            if why:
                self.left_out[node.host] = why
                node.lost = why
                node.close()
        return [node for node in nodes if not node.lost]


def hosts_of(hostfile: str | None, cluster: Cluster | None = None) -> Hosts | None:
    """The hosts of a hostfile, or of a cluster of that kind; None where there is neither.

    Call it early: the environment as it is now is sent on. Errors: `UserError` for a hostfile that is wrong.
    """
    described = cluster.hostfile if cluster and cluster.kind == "hostfile" else Hostfile()
    described = replace(described, path=hostfile or described.path)
    if not described.path:
        return None
    found = local.read_hostfile(Path(described.path))
    devices = chosen({host: list(range(slots)) for host, slots in found.items()}, described)
    names = cluster.secrets if cluster else ()
    sent = {name: value for name, value in os.environ.items() if name.startswith(SENT) or name in names}
    if cluster is None:
        return Hosts(described, devices, sent)
    return Hosts(described, devices, {**sent, **cluster.environment}, cluster.setup)


def chosen(devices: dict[str, list[int]], file: Hostfile) -> dict[str, list[int]]:
    """What `include` or `exclude` leave of the hosts, in DeepSpeed's words: `worker-0@worker-1:0,2`.

    Errors: `UserError` for a host or a slot that the hostfile does not have.
    """
    named: dict[str, list[int]] = {}
    for part in filter(None, (file.include or file.exclude).split("@")):
        host, _, slots = part.strip().partition(":")
        each = [int(slot) for slot in slots.split(",")] if slots else devices.get(host, [])
        if host not in devices or not set(each) <= set(devices[host]):
            raise UserError(f"{part!r} is no host and slots of {file.path}; write them as: worker-0@worker-1:0,2")
        named[host] = each
    if not named:
        return devices
    left = {
        host: [each for each in all_of if (each in named.get(host, [])) == bool(file.include)]
        for host, all_of in devices.items()
    }
    if not any(left.values()):
        raise UserError(f"hostfile.exclude leaves no host of {file.path}; exclude fewer")
    return {host: each for host, each in left.items() if each}


class _NotReadyError(UserError):
    """Hosts are not ready: a line for each."""

    def __init__(self, whys: list[str]) -> None:
        super().__init__("; ".join(whys))
        self.whys = whys

    @property
    def lines(self) -> list[str]:
        """What is shown of it."""
        return [f"host {why}" for why in self.whys]


@contextmanager
def _seen(path: Path) -> Iterator[dict[str, str]]:
    """A file that lies where the run does, as long as the block lasts: who sees it sees the run."""
    place = next(each for each in (path, *path.absolute().parents) if each.is_dir()).absolute()
    content = os.urandom(8).hex()
    file = place / f".seen.{socket.gethostname()}-{content}"  # a new name each time: NFS remembers what was not there
    file.write_text(content)
    try:
        yield {"file": str(file), "content": content}
    finally:
        file.unlink(missing_ok=True)


def _answered(node: Node) -> bool:
    """Whether it is known how it stands with a host."""
    for message in node.talk.heard():
        node.facts = message.get("facts", node.facts)
    node.printed()
    return bool(node.facts) or node.talk.over


def _wrong(node: Node, slots: int, own: dict[str, str], path: Path) -> str | None:
    """What keeps ranks from being started on a host, with the remedy; None where nothing does."""
    found = node.facts
    if not found:
        return _unreached(node)
    for what, value in own.items():
        if found[what] != value:
            return f"the {what} there is {found[what]}, here {value}; make {ROOT} and its .venv the same"
    if not found["sees"]:
        return f"it does not see {path}; let --run-dir or STAGECRAFT_RUNS lie on storage that all hosts share"
    if found["boards"] and slots > found["boards"]:
        return f"it has {found['boards']} GPUs and not {slots}; correct its slots in the hostfile"
    return None


def _unreached(node: Node) -> str:
    """Why a host gave no answer, in words and with the remedy."""
    if not node.talk.over:
        return f"it does not answer within {ANSWER_SECONDS:.0f} s; look at it with: ssh {node.host}"
    with suppress(subprocess.TimeoutExpired):
        node.process.wait(1.0)
    node.printed()
    said = "\n".join(node.said)
    if node.process.returncode == NO_PROJECT:
        return f"there is no {ROOT} there; share it, or copy it there"
    if node.process.returncode in (126, 127):
        return f"there is no {sys.executable} there; share it, or run make setup there"
    if "No module named" in said:
        return f"the project in {ROOT} there is another one; make it the same"
    known = next((remedy for words, remedy in REFUSALS.items() if words in said), None)
    return known.format(host=node.host) if known else (node.said[-1] if node.said else "the connection ended")


def _twice(node: Node, named: dict[str, str]) -> str | None:
    """Whether a host is one that was seen under another name; `named` has those that were seen."""
    name = node.facts["host"]
    if (other := named.setdefault(name, node.host)) == node.host:
        return None
    return f"it calls itself {name}, as {other} does; give each machine once, and a host name of its own"


def _first(world: int, devices: dict[str, list[int]]) -> dict[str, list[int]]:
    """The first `world` devices of the hosts."""
    chosen, left = {}, world
    for host, each in devices.items():
        if left > 0:
            chosen[host] = each[:left]
            left -= len(each)
    return chosen


def _address(nodes: Sequence[Node]) -> str:
    """The first host's address as the others reach it: no name is resolved, which may say 127.0.1.1 on its host.

    It is the one by which ssh reached it, or from which it reached another host.
    """
    first = nodes[0]
    if not first.here:
        return str(first.facts["server"])
    return next((str(node.facts["client"]) for node in nodes if not node.here), "127.0.0.1")


def is_here(host: str) -> bool:
    """Whether a host is this machine: one of its addresses is ours, as only ours can be bound."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind(address)
                return True
    return False
