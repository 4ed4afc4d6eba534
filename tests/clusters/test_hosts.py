"""Runs on several hosts: each a network namespace with its own address, host name and ssh server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from recipes.registry import ROOT
from run import events, members
from run.directory import end_of
from run.metrics import read_steps
from support.errors import CRASHED, DONE, STOPPED
from tests.clusters.machines import Machine, Machines, machines, missing
from tests.commands.running import metrics, small, write_corpus
from tests.patience import ended, wait_until

pytestmark = pytest.mark.clusters

STEPS = 40
NEVER = ("intervals.save_every=1000",)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hosts")
    write_corpus(home / "corpus.jsonl")
    return home


@pytest.fixture(scope="module")
def hosts(home: Path) -> Iterator[Machines]:
    if why := missing():
        pytest.skip(f"no machines can be made: {why}")
    with machines(home, "one", "two", "three") as made:
        yield made


class Run:
    """A run that a command on a machine starts."""

    def __init__(self, home: Path, machine: Machine, name: str, *flags: str, settings: tuple[str, ...] = ()) -> None:
        self.path, self.machine = home / name, machine
        tokens = (f"schedule.train_tokens={STEPS * 256}", "intervals.evaluate_every=1000", *settings)
        given = [*small(home / "corpus.jsonl"), *tokens, "--run-dir", str(self.path), *flags]
        self.said = home / f"{name}.said"
        with open(self.said, "w") as said:
            env = {"STAGECRAFT_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1"}
            line = (sys.executable, "-m", "recipes.gpt_tiny", *given)
            self.process = machine.start(*line, env=env, stdout=said, stderr=said)

    @property
    def command(self) -> int:
        """The process of the command: `ip netns exec`, unshare and sh become it."""
        return self.process.pid

    @property
    def step(self) -> int:
        """The last step that was taken."""
        file = self.path / "metrics.jsonl"
        steps = read_steps(file) if file.exists() else []
        return int(steps[-1]["step"]) if steps else 0

    def at_step(self, step: int) -> "Run":
        """Wait until so many steps are taken."""
        self.wait(lambda: self.step >= step)
        assert self.process.poll() is None, self.said.read_text()
        return self

    def wait(self, holds: Callable[[], object]) -> None:
        """Wait until something holds or the command ends, as long as it or a machine works."""
        wait_until(lambda: holds() or self.process.poll() is not None, self.command, *self.machine.servers)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        found = members.read(self.path, str(number))
        assert found
        return found.pid

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its events of a kind."""
        return [line for line in events.read(self.path) if line["event"] == event]

    def finish(self) -> tuple[int, str]:
        """Wait for its end; returns status and what it said."""
        self.wait(lambda: False)
        assert self.process.returncode is not None
        return self.process.returncode, self.said.read_text()


def hostfile(home: Path, name: str, *lines: str) -> list[str]:
    file = home / f"{name}.hosts"
    file.write_text("".join(f"{line}\n" for line in lines))
    return ["--hostfile", str(file)]


@pytest.fixture(scope="module")
def unbroken(home: Path, hosts: Machines) -> Path:
    """Four ranks on one host."""
    run = Run(home, hosts["one"], "unbroken", "--processes", "4")
    assert run.finish()[0] == DONE
    return run.path


def gone(hosts: Machines, *names: str) -> bool:
    """Whether no process of the project is left on the machines."""
    return not any(hosts.pythons(hosts[name]) for name in names)


def test_two_hosts_compute_what_one_does(home: Path, hosts: Machines, unbroken: Path) -> None:
    """The command runs on a host that has no ranks, as on a login node."""
    run = Run(home, hosts["three"], "far", *hostfile(home, "far", "one slots=2", "two slots=2"))
    status, said = run.finish()
    assert status == DONE, said
    assert metrics(run.path) == metrics(unbroken)
    assert gone(hosts, "one", "two", "three")


def test_a_rank_that_is_killed_on_another_host_is_named(home: Path, hosts: Machines, unbroken: Path) -> None:
    run = Run(home, hosts["one"], "killed", *hostfile(home, "killed", "one slots=2", "two slots=2")).at_step(8)
    os.kill(run.rank(3), signal.SIGKILL)
    status, said = run.finish()
    assert status == DONE, said
    (fault,), (restart,) = run.events("fault"), run.events("restart")
    assert (fault["rank"], fault["code"], fault["reason"]) == (3, -9, "rank 3 of 4 on node two was killed by SIGKILL")
    assert restart["ranks"] == 4
    assert metrics(run.path) == metrics(unbroken)


def test_secrets_reach_the_ranks_and_no_command_line_and_ctrl_c_reaches_every_host(home: Path, hosts: Machines) -> None:
    os.environ["WANDB_API_KEY"] = secret = "a 'secret' $(touch x)"
    try:
        run = Run(home, hosts["one"], "secret", *hostfile(home, "secret", "one slots=1", "two slots=1"), settings=NEVER)
    finally:
        del os.environ["WANDB_API_KEY"]
    far = psutil.Process(run.at_step(3).rank(1))
    assert far.environ()["WANDB_API_KEY"] == secret
    lines = [" ".join(psutil.Process(pid).cmdline()) for name in ("one", "two") for pid in hosts.pids(hosts[name])]
    assert len(lines) > 6 and not any("secret'" in line for line in lines)
    stop(run, signal.SIGINT)
    assert gone(hosts, "one", "two")


def stop(run: Run, number: signal.Signals) -> None:
    """Ask a run to stop, which saves nothing but for that."""
    os.kill(run.command, number)
    status, said = run.finish()
    assert (status, end_of(run.path)) == (STOPPED, STOPPED) and not run.events("fault"), said
    assert [event["step"] for event in run.events("saved")] == [run.step] and run.step < STEPS


def test_a_killed_command_leaves_no_process_on_any_host(home: Path, hosts: Machines) -> None:
    run = Run(home, hosts["one"], "orphans", *hostfile(home, "orphans", "one slots=1", "two slots=1")).at_step(3)
    left = [pid for name in ("one", "two") for pid in hosts.pythons(hosts[name])]
    assert len(left) > 5  # the command, and on each host its starter, a launcher and a rank
    os.kill(run.command, signal.SIGKILL)
    run.process.wait()
    wait_until(lambda: gone(hosts, "one", "two"), *left)
    assert end_of(run.path) == STOPPED and [event["step"] for event in run.events("saved")][-1] == run.step


def test_a_host_that_loses_its_link_is_named_and_the_rest_goes_on(home: Path, hosts: Machines) -> None:
    run = Run(home, hosts["one"], "cut", *hostfile(home, "cut", "one slots=1", "two slots=1")).at_step(8)
    lost = hosts.pythons(hosts["two"])
    hosts["two"].plug(up=False)
    try:
        status, said = run.finish()
        assert status == DONE, said
        (fault,), (restart,) = run.events("fault"), run.events("restart")
        assert fault["reason"].startswith("host two is lost: ")
        assert restart["ranks"] == 1
        assert "host two is left out: it does not answer" in said
        assert run.step == STEPS
        wait_until(lambda: all(map(ended, lost)), *lost)  # nobody tells them
    finally:
        hosts["two"].plug(up=True)


def test_a_stopped_rank_on_another_host_is_named(home: Path, hosts: Machines) -> None:
    flags = (*hostfile(home, "hung", "one slots=1", "two slots=1"), "--hang-seconds", "10")
    run = Run(home, hosts["one"], "hung", *flags).at_step(8)
    os.kill(run.rank(1), signal.SIGSTOP)
    assert run.finish()[0] == DONE
    (fault,) = run.events("fault")
    assert fault["rank"] == 1 and "rank 1 of 2 on node two is stopped (SIGSTOP" in fault["reason"]


def test_ranks_that_fail_at_the_start_of_a_host_leave_nobody_waiting(home: Path, hosts: Machines) -> None:
    """They are killed before any of them has said who it is."""
    run = Run(home, hosts["one"], "stillborn", *hostfile(home, "stillborn", "one slots=1", "two slots=1"))
    run.wait(lambda: (run.path / "ranks").exists() and len(hosts.pythons(hosts["two"])) > 1)
    for pid in hosts.pythons(hosts["two"])[1:]:
        os.kill(pid, signal.SIGKILL)
    status, said = run.finish()
    assert status == CRASHED and re.search(r"error: .* on (node )?two .*; go on with --resume", said), said
    assert gone(hosts, "one", "two")


@pytest.mark.parametrize("who", ["starter", "launcher"])
def test_who_starts_the_ranks_of_a_host_may_be_killed(home: Path, hosts: Machines, who: str) -> None:
    name = f"{who}-killed"
    run = Run(home, hosts["one"], name, *hostfile(home, name, "one slots=1", "two slots=1")).at_step(8)
    launcher = psutil.Process(run.rank(1)).parent()
    assert launcher
    os.kill(launcher.pid if who == "launcher" else launcher.ppid(), signal.SIGKILL)
    status, said = run.finish()
    assert status == DONE and run.step == STEPS, said
    (fault,) = run.events("fault")
    assert "two" in fault["reason"], fault
    assert gone(hosts, "one", "two")


def refused(run: Run) -> str:
    """What a command says that starts nothing."""
    status, said = run.finish()
    assert status == 2 and "Traceback" not in said, said
    assert not run.path.exists()
    return said


def test_hosts_that_are_not_ready_are_said_in_a_line_each(home: Path, hosts: Machines) -> None:
    (home / "three" / "authorized").rename(home / "three" / "hidden")
    try:
        lines = ("two slots=1", "three slots=1", "four slots=1", f"{hosts['two'].address} slots=1")
        said = refused(Run(home, hosts["one"], "unready", *hostfile(home, "unready", *lines)))
    finally:
        (home / "three" / "hidden").rename(home / "three" / "authorized")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [re.match(r"error: host (\S+): ", line)[1] for line in errors] == ["three", "four", hosts["two"].address]  # type: ignore[index]
    assert "ssh-copy-id three" in errors[0] and "no host of that name" in errors[1]
    assert "it calls itself two, as two does" in errors[2]


@pytest.mark.parametrize("first", [True, False])
def test_a_host_that_is_down_is_found_before_anything_starts(home: Path, hosts: Machines, first: bool) -> None:
    lines = ("two slots=1", "three slots=1") if first else ("three slots=1", "two slots=1")
    hosts["two"].plug(up=False)
    try:
        said = refused(Run(home, hosts["one"], "down", *hostfile(home, "down", *lines)))
    finally:
        hosts["two"].plug(up=True)
    assert "error: host two: it does not answer; start it, or take its line out of the hostfile" in said


def test_a_run_directory_that_a_host_does_not_see_is_refused(home: Path, hosts: Machines) -> None:
    """`/etc/ssh` is another folder on each of these machines."""
    lines = hostfile(home, "unshared", "one slots=1", "two slots=1")
    said = refused(Run(home, hosts["one"], "unshared", *lines, "--run-dir", "/etc/ssh/run"))
    assert "error: host two: it does not see /etc/ssh/run; let --run-dir or STAGECRAFT_RUNS lie on storage" in said


@pytest.fixture
def debian(hosts: Machines) -> Iterator[None]:
    """The first host's own name means its loopback there. Debian's installer writes such a line."""
    file = hosts["one"].etc / "hosts"
    before = file.read_text()
    file.write_text(before.replace(f"{hosts['one'].address} one", "127.0.1.1 one"))
    yield
    file.write_text(before)


@pytest.mark.usefixtures("debian")
def test_a_name_that_means_the_loopback_on_its_own_host_does_no_harm(home: Path, hosts: Machines) -> None:
    """SIGTERM ends this run, on both hosts."""
    run = Run(home, hosts["one"], "loopback", *hostfile(home, "loopback", "one slots=1", "two slots=1"), settings=NEVER)
    stop(run.at_step(3), signal.SIGTERM)
    assert gone(hosts, "one", "two")


@pytest.mark.usefixtures("debian")
def test_a_loopback_name_does_no_harm_to_bare_ranks(home: Path, hosts: Machines) -> None:
    """gloo would listen there, and the other host would call itself."""
    started = []
    for rank, name in enumerate(("one", "two")):
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "one", "MASTER_PORT": "29503"}
        started.append(bare(home, hosts[name], "named", "recipes.gpt_tiny", *given(home, "named"), **env))
    wait_until(lambda: all(each.poll() is not None for each in started), *(each.pid for each in started))
    assert [each.returncode for each in started] == [0, 0], (home / "named.said").read_text()


def given(home: Path, name: str) -> list[str]:
    """The flags of a run that other launchers start."""
    tokens = (f"schedule.train_tokens={STEPS * 256}", "intervals.evaluate_every=1000")
    return [*small(home / "corpus.jsonl"), *tokens, "--run-dir", str(home / name)]


def bare(home: Path, machine: Machine, name: str, *line: str, **env: str) -> "subprocess.Popen[str]":
    """Start a command line on a machine that is no command of ours; it prints into a file."""
    own = {"STAGECRAFT_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1", **env}
    with open(home / f"{name}.said", "a") as said:
        return machine.start(sys.executable, "-m", *line, env=own, stdout=said, stderr=said)


def test_torchrun_on_two_hosts(home: Path, hosts: Machines, unbroken: Path) -> None:
    where = ("--nnodes", "2", "--nproc-per-node", "2", "--master-addr", "one", "--master-port", "29500")
    lines = [("torch.distributed.run", *where, "--node-rank", rank, "-m", "recipes.gpt_tiny") for rank in "01"]
    started = [
        bare(home, hosts[name], "torchrun", *line, *given(home, "torchrun"))
        for name, line in zip(("one", "two"), lines, strict=True)
    ]
    wait_until(lambda: all(each.poll() is not None for each in started), *(each.pid for each in started))
    assert [each.returncode for each in started] == [0, 0], (home / "torchrun.said").read_text()
    assert metrics(home / "torchrun") == metrics(unbroken)


def test_bare_ranks_on_two_hosts(home: Path, hosts: Machines, unbroken: Path) -> None:
    started = []
    for rank in range(4):
        env = {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2), "MASTER_PORT": "29501"}
        machine = hosts["one" if rank < 2 else "two"]
        line = ("recipes.gpt_tiny", *given(home, "bare"))
        started.append(bare(home, machine, "bare", *line, MASTER_ADDR=hosts["one"].address, **env))
    wait_until(lambda: all(each.poll() is not None for each in started), *(each.pid for each in started))
    assert [each.returncode for each in started] == [0] * 4, (home / "bare.said").read_text()
    assert metrics(home / "bare") == metrics(unbroken)


@pytest.mark.skipif(not shutil.which("mpirun"), reason="there is no mpirun: apt install openmpi-bin")
def test_open_mpi_on_two_hosts(home: Path, hosts: Machines, unbroken: Path) -> None:
    mpi = ["mpirun", "--allow-run-as-root", "-np", "4", "--host", "one:2,two:2", "--mca", "plm_rsh_agent", "ssh"]
    sent = ["-x", "MASTER_ADDR=one", "-x", "OMP_NUM_THREADS", "-x", "DS_ACCELERATOR", "-x", "STAGECRAFT_RUNS"]
    line = [*mpi, *sent, "-wdir", str(ROOT), sys.executable, "-m", "recipes.gpt_tiny", *given(home, "mpi")]
    env = {"STAGECRAFT_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1"}
    done = hosts["one"].run(*line, env=env)
    assert done.returncode == 0, done.stderr
    assert metrics(home / "mpi") == metrics(unbroken)


def test_torchrun_goes_on_with_the_host_that_is_left(home: Path, hosts: Machines) -> None:
    """An elastic job: its ranks start anew where the number of hosts changes, and find the newest checkpoint."""
    path = home / "elastic"
    where = ("--nnodes", "1:2", "--nproc-per-node", "2", "--max-restarts", "3", "--rdzv-backend", "c10d")
    meeting = ("--rdzv-endpoint", f"{hosts['one'].address}:29502", "--rdzv-id", "elastic")
    line = ("torch.distributed.run", *where, *meeting, "-m", "recipes.gpt_tiny", *given(home, "elastic"))
    # Else torch 2.13 keeps one store for all starts, and a rank may find the address that another had before.
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    started = [bare(home, hosts[name], "elastic", *line, "--resume", "auto", **own) for name in ("one", "two")]

    def step() -> int:
        file = path / "metrics.jsonl"
        return len(read_steps(file)) if file.exists() else 0

    wait_until(lambda: step() >= 8, *(each.pid for each in started))
    assert json.loads((path / "start.json").read_text())["world_size"] == 4
    for pid in hosts.pythons(hosts["two"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: started[0].poll() is not None, started[0].pid)
    started[1].wait()
    assert started[0].returncode == 0, (home / "elastic.said").read_text()
    assert json.loads((path / "start.json").read_text())["world_size"] == 2 and step() == STEPS
