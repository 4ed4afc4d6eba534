"""Before a run: the preflight over ssh and in a real Slurm, and what ranks compare at each start."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.clusters.asked import Where
from launch.preflight import submit as preflight
from launch.preflight.asked import Asked
from recipes.registry import load
from run import events
from support.errors import DONE, STOPPED, WRONG_INPUT
from tests.clusters.conftest import Submit, settings
from tests.clusters.machines import Machine, Machines, machines, missing
from tests.clusters.own_slurm import OwnSlurm
from tests.patience import wait_until

pytestmark = pytest.mark.clusters

LIAR = """import importlib.metadata as told
real = told.version
told.version = lambda name: "99.0" if name == "numpy" else real(name)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if why := missing():
        pytest.skip(f"no machines can be made: {why}")
    with machines(tmp_path_factory.mktemp("hosts"), "one", "two") as made:
        (made.folder / "hosts").write_text("one slots=2\ntwo slots=2\n")
        (made.folder / "mine.toml").write_text(
            f'kind = "hostfile"\nlink = "ethernet"\nruns = "{made.folder}/runs"\n'
            f'[hostfile]\npath = "{made.folder}/hosts"\ninclude = "one:0@two:1"\n'
        )
        yield made


def line(hosts: Machines) -> list[str]:
    return [sys.executable, "-m", "commands", "preflight", "tiny", "--cluster", str(hosts.folder / "mine.toml")]


def left(hosts: Machines) -> list[int]:
    """The processes of the project on both machines."""
    return [pid for machine in hosts.each.values() for pid in hosts.pythons(machine)]


def test_the_ranks_of_a_preflight_are_started_over_ssh(hosts: Machines) -> None:
    done = hosts["one"].run(*line(hosts), "--json", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == DONE, done.stdout + done.stderr
    values = json.loads(done.stdout)
    assert values["ok"] and (values["world_size"], values["hosts"]) == (2, 2)
    assert values["checks"][0]["seen"] == "2 on one, two" and values["checks"][-1]["name"] == "traffic"
    assert not left(hosts)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_preflight_that_is_ended_leaves_no_process_on_any_host(hosts: Machines, number: signal.Signals) -> None:
    with open(hosts.folder / "said", "w") as said:
        command = hosts["one"].start(*line(hosts), env={"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said)
    three = lambda machine: len(hosts.pythons(machine)) > 2  # noqa: E731  # the starter, a launcher, a rank
    wait_until(lambda: three(hosts["two"]) or command.poll() is not None, command.pid)
    assert command.poll() is None, (hosts.folder / "said").read_text()
    started = left(hosts)
    os.kill(command.pid, number)
    assert command.wait() == (STOPPED if number == signal.SIGINT else -number)
    wait_until(lambda: not left(hosts), *started)


def test_hosts_that_are_not_alike_end_a_run_for_good(hosts: Machines, home: Path) -> None:
    site, run = hosts.folder / "two" / "site", hosts.folder / "unlike"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LIAR)
    try:
        done = _train(hosts["one"], home, run, "--hostfile", str(hosts.folder / "hosts"))
    finally:
        (site / "sitecustomize.py").unlink()
    assert done[0] == WRONG_INPUT, done
    (error,) = [each for each in done[1].splitlines() if "error: " in each]
    assert "numpy is 99.0 on two (ranks 2, 3), and " in error and "elsewhere; install the same everywhere" in error
    assert not [each for each in events.read(run) if each["event"] in ("fault", "restart")]
    assert not left(hosts)


def _train(machine: Machine, home: Path, run: Path, *flags: str) -> tuple[int, str]:
    words = ("-m", "recipes.gpt_tiny", *settings(home, 20), "--run-dir", str(run), *flags)
    done = machine.run(sys.executable, *words, env={"STAGECRAFT_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout + done.stderr


def test_a_preflight_is_a_short_job_of_slurm(submit: Submit, own_slurm: OwnSlurm, home: Path) -> None:
    file = home / "slurm.toml"
    file.write_text(
        f'kind = "slurm"\nnodes = 2\ngpus_per_node = 1\nlink = "ethernet"\nruns = "{home}/runs"\n'
        '[slurm]\npartition = "main"\ngpus = false\n'
    )
    asked = Asked(load("tiny"), run_dir=str(home / "looked at"))
    value = preflight.submitted(asked, Where(str(file)))
    run = submit("looking")  # for its patience
    job = ("--noheader", f"--jobs={value['id']}", "--states=all", "--format=%T")
    run.wait(lambda: own_slurm.said("squeue", *job).strip() in ("COMPLETED", "FAILED"), "the end")
    said = Path(value["output"]).read_text()
    assert said.startswith("gpt_tiny on 2 ranks, 2 hosts, ") and "2 on n0, n1" in said, said
    # The two nodes of this Slurm share one network, and so rank 0's address is the loopback for both.
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [line.split(" port ")[0] for line in errors] == ["error: names and network: 127.0.0.1"], said
    assert "  ok    traffic " in said
    assert [each.name for each in asked.folder.iterdir()] == [Path(value["output"]).name]


def test_a_node_with_a_folder_of_its_own_ends_a_job_for_good(submit: Submit, home: Path) -> None:
    """Its storage looks as the others' does, and is a copy."""
    path, copy = home / "unshared", home / "copied"
    own = f'cp -a {path} {copy} && mount --bind {copy} {path} && exec "$0" "$@"'
    setup = f'[ "$(hostname)" != n1 ] || exec unshare --mount sh -c {shlex.quote(own)} "$0" "$@"'
    run = submit("unshared", setup=(setup,)).submit().at_end("FAILED")
    assert run.events("end")[-1]["status"] == WRONG_INPUT, run.printed
    assert not [name for name in ("fault", "restart", "queued") if run.events(name)]
    (error,) = [each for each in run.printed.splitlines() if "error: " in each and "srun: error" not in each]
    assert f"{path} on n1: " in error and "put it on storage that all machines mount there" in error
