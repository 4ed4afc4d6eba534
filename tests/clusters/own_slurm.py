"""A real Slurm of two nodes on this machine, with a key, sockets, ports and folders of its own. It needs root.

Each node has a host name of its own (a UTS namespace), so its ranks count as processes of another machine. Nothing is
written outside `home`, and all ends with `close`.
"""

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "unshare", "hostname")
NODES = ("n0", "n1")
CONFIGURATION = """
ClusterName=stagecraft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=6
CryptoType=crypto/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=20
KillWait=20
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=1000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=1000
PartitionName=main Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    absent = [name for name in PROGRAMS if _path(name) is None]
    if absent:
        return f"{', '.join(absent)}: not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start slurmd and jobs"
    own = subprocess.run(["unshare", "--uts", "true"], capture_output=True, text=True)
    return f"no host names of their own for the nodes: {own.stderr.strip()}" if own.returncode else ""


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OwnSlurm:
    """The daemons. `environment` is what Slurm's commands need to find them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"SLURM_CONF": str(home / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration and start all; returns when both nodes are idle."""
        (self.home / "state").mkdir(parents=True)
        ports = {"controller": _free_port(), "first": _free_port(), "second": _free_port()}
        text = CONFIGURATION.format(home=self.home, host=socket.gethostname(), **ports)
        (self.home / "slurm.conf").write_text(text)
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={self.home}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.home}/munge.socket", *files)
        self._wait(lambda: (self.home / "munge.socket").exists(), "munged")
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", str(self.home / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.said("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], "the nodes")

    def start_node(self, node: str) -> None:
        """Start a node's daemon, with a host name of its own."""
        (self.home / f"spool.{node}").mkdir(exist_ok=True)
        script = 'hostname "$0"; exec "$@"'
        daemon = [_path("slurmd") or "slurmd", "-D", "-N", node, "-f", str(self.home / "slurm.conf")]
        self._start(node, "unshare", "--uts", "sh", "-c", script, node, *daemon)

    def kill_node(self, node: str) -> None:
        """A node loses its power: its daemon and all that runs there are killed."""
        mine = self.home / f"spool.{node}"
        daemon = psutil.Process(self.daemons[node].pid)
        there = [each for each in psutil.process_iter() if _host_of(each.pid) == _host_of(daemon.pid)]
        assert mine.exists() and 0 < len(there) < 30
        for process in there:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemons.pop(node).wait()

    def said(self, *command: str, check: bool = False) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End all of it."""
        if "slurmctld" in self.daemons:
            self.said("scancel", "--user=root")
            with suppress(AssertionError):
                self._wait(lambda: not self.said("squeue", "-h"), "the end of the jobs", 15)
        for name in [*NODES, "slurmctld", "munged"]:
            if daemon := self.daemons.pop(name, None):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        for process in psutil.process_iter(["cmdline"]):  # slurmstepd outlives its daemon
            if str(self.home) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _start(self, name: str, program: str, *arguments: str) -> None:
        line = [_path(program) or program, *arguments]
        with open(self.home / f"{name}.out", "ab") as out:
            env = {**os.environ, **self.environment}
            self.daemons[name] = subprocess.Popen(line, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def _wait(self, holds: object, what: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            said = "".join((self.home / f"{name}.out").read_text() for name in dead)
            assert not dead and time.monotonic() < until, f"no {what}: {' '.join(dead)} {said[-2000:]}"
            time.sleep(0.1)


def _host_of(pid: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/uts").readlink())
    return ""
