"""Machines that are network namespaces of this one: each with its address, its host name and its ssh server.

They share processors and files, as machines that share storage do, and nothing of the network.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from recipes.registry import ROOT

TOOLS = ("ip", "unshare", "ssh", "ssh-keygen", "/usr/sbin/sshd")
SERVER = """
Port 22
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv PYTHONPATH={folder}/site
"""
CLIENT = """
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
GlobalKnownHostsFile /dev/null
"""


def missing() -> str | None:
    """What keeps machines from being made here."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"there is no {', '.join(absent)}: apt install iproute2 openssh-server"
    probe = f"stage-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this kernel makes no network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machine:
    """One of them. `name` is its host name, and others reach it by that name."""

    def __init__(self, name: str, number: int, mark: str) -> None:
        self.name, self.address = name, f"10.77.{os.getpid() % 250}.{number}"
        self.servers: list[int] = []  # the ssh servers of all machines: what works, works below one of them
        self.space, self.link = f"{mark}-{name}", f"{mark[-6:]}v{number}"
        self.etc = Path("/etc/netns") / self.space  # what stands there stands in /etc, inside

    def line(self, *command: str) -> list[str]:
        """A command line, as it runs on this machine."""
        named = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", named, self.name, *command]

    def start(self, *command: str, env: Mapping[str, str] | None = None, **more: object) -> "subprocess.Popen[str]":
        """Start a command on it, from the project's folder."""
        own = {**os.environ, **(env or {})}
        return subprocess.Popen(self.line(*command), env=own, cwd=ROOT, text=True, **more)  # type: ignore[call-overload, no-any-return]

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command on it to its end."""
        own = {**os.environ, **(env or {})}
        return subprocess.run(self.line(*command), env=own, cwd=ROOT, text=True, capture_output=True, timeout=600)

    def plug(self, up: bool) -> None:
        """Put its network cable in, or pull it out."""
        _ip("link", "set", self.link, "up" if up else "down")


class Machines:
    """Machines on one switch, made and removed by `machines`."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.mark = folder, f"stage{os.getpid()}"
        self.bridge = f"{self.mark[-8:]}br"
        self.each = {name: Machine(name, number, self.mark) for number, name in enumerate(names, start=1)}

    def __getitem__(self, name: str) -> Machine:
        return self.each[name]

    def make(self) -> None:
        """Make all of them, and wait until their servers answer."""
        Path("/run/sshd").mkdir(exist_ok=True)
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")], check=True)
        hosts = ["127.0.0.1 localhost", *(f"{each.address} {name}" for name, each in self.each.items())]
        known = []
        for name, machine in self.each.items():
            folder = self.folder / name
            folder.mkdir()
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host")], check=True)
            shutil.copy(self.folder / "key.pub", folder / "authorized")
            known.append(f"{name},{machine.address} {(folder / 'host.pub').read_text()}")
            (machine.etc / "ssh").mkdir(parents=True)
            (machine.etc / "ssh" / "ssh_config").write_text(CLIENT.format(folder=self.folder))
            (machine.etc / "hosts").write_text("\n".join(hosts) + "\n")
            (folder / "sshd_config").write_text(SERVER.format(address=machine.address, folder=folder))
            self._wire(machine)
        (self.folder / "known").write_text("".join(known))
        for name, machine in self.each.items():
            subprocess.run(machine.line("/usr/sbin/sshd", "-f", str(self.folder / name / "sshd_config")), check=True)
        servers = [int(self._pid_file(name).read_text()) for name in self.each]
        for machine in self.each.values():
            machine.servers = servers

    def _pid_file(self, name: str) -> Path:
        file = self.folder / name / "sshd.pid"
        until = time.monotonic() + 30
        while not (file.exists() and file.read_text().strip()) and time.monotonic() < until:
            time.sleep(0.02)
        return file

    def _wire(self, machine: Machine) -> None:
        _ip("netns", "add", machine.space)
        _ip("link", "add", machine.link, "type", "veth", "peer", "name", "eth0", "netns", machine.space)
        _ip("link", "set", machine.link, "master", self.bridge, "up")
        for words in (("addr", "add", f"{machine.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _ip("-n", machine.space, *words)
        _ip("-n", machine.space, "link", "set", "lo", "up")
        _ip("-n", machine.space, "route", "add", "default", "dev", "eth0")

    def remove(self) -> None:
        """End all that runs on them, and remove them."""
        for machine in self.each.values():
            for pid in self.pids(machine):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for words in (("netns", "del", machine.space), ("link", "del", machine.link)):
                subprocess.run(["ip", *words], capture_output=True)
            shutil.rmtree(machine.etc, ignore_errors=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def pids(self, machine: Machine) -> list[int]:
        """The processes that run on a machine."""
        told = subprocess.run(["ip", "netns", "pids", machine.space], capture_output=True, text=True)
        return [int(word) for word in told.stdout.split()]

    def pythons(self, machine: Machine) -> list[int]:
        """Those of this project on a machine."""
        found = []
        for pid in self.pids(machine):
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).exe() == str(Path(sys.executable).resolve()):
                    found.append(pid)
        return found


@contextmanager
def machines(folder: Path, *names: str) -> Iterator[Machines]:
    """Machines of these names, as long as the block lasts."""
    made = Machines(folder, list(names))
    try:
        made.make()
        yield made
    finally:
        made.remove()
