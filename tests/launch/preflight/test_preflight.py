"""Real ranks look at this machine: good ones, and ones that are unlike, blind, late or broken. None waits for long."""

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch import local
from launch.clusters.asked import Where
from launch.clusters.description import Cluster
from launch.preflight import node, rank, start, submit
from launch.preflight.asked import Asked, Limits, Values
from launch.preflight.meeting import Meeting
from recipes.registry import load
from support.errors import CRASHED, DONE, WRONG_INPUT, UserError
from tests.commands.documented import check
from tests.commands.running import Command, run
from tests.interpreter import context
from tests.patience import ended, wait_until

PATIENT = Limits(meet=120.0, answer=120.0, total=600.0)
HASTY = 2.0  # seconds that a broken stage gets; the stages before it are left in peace
Does = Callable[[int], None]  # what a rank does to itself before it begins


def two(folder: Path, does: Does, limits: Limits = PATIENT, world: int = 2) -> list[Any]:
    """Ranks that say they are machines a, b …: what the first said, and the status or the error of each."""
    port, pipes, processes = local.free_port(), [], []
    for number in range(world):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=_rank, args=(number, world, port, folder, does, limits, theirs)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    found = []
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            found.append(pickle.loads(pipe.recv_bytes()))
        except EOFError:
            found.append("ended")
        process.kill()
        process.join()
    return found


def _rank(number: int, world: int, port: int, folder: Path, does: Does, limits: Limits, pipe: Connection) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK="0", WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    rank.facts.host_name = lambda: "abc"[number]
    node.addresses = lambda name: ("127.0.0.1" if name == "lo" else "10.0.0.1",)  # asks no server of names
    does(number)
    said: list[Values] = []
    try:
        status = rank.be_rank(
            Asked(load("tiny"), settings=("batch.global_batch=48",), run_dir=str(folder)), said.append, limits
        )
        found: Any = (*said, status)
    except UserError as error:
        found = f"{error.status} {error}"
    pipe.send_bytes(pickle.dumps(found))


def findings(found: Any) -> dict[str, list[str]]:
    """The lines that spoil the run, by check."""
    values = found[0]
    every = {each["name"]: [line["line"] for line in each["findings"] if line["spoils"]] for each in values["checks"]}
    return {name: lines for name, lines in every.items() if lines}


def nothing(number: int) -> None:
    """A rank as it is."""


def test_two_machines_that_go_together(tmp_path: Path) -> None:
    (first, (status,)) = two(tmp_path, nothing)
    values = first[0]
    assert findings(first) == {} and (first[1], status) == (DONE, DONE)
    assert values["hosts"] == 2 and {each["state"] for each in values["checks"]} == {"ok"}
    names = ["ranks", "versions", "recipe and JSON", "GPUs", "memory", "places", "names and network", "storage"]
    names += ["room and speed of saves", "prepared data", "clocks", "traffic"]
    assert [each["name"] for each in values["checks"]] == names
    assert [each["axis"] for each in values["speeds"]] == ["data"] and values["speeds"][0]["gb_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


def slow(number: int) -> None:
    """Machine c reduces 50 times as slowly as it does."""
    real = rank.measure

    def measured(*given: Any) -> Any:
        timing = real(*given)
        return timing and replace(timing, seconds=1.0 if number == 2 else 0.02)

    rank.measure = measured


def test_a_slow_machine_is_found_among_three(tmp_path: Path) -> None:
    """Each machine has two neighbours: a and b are quick with each other."""
    first, *others = two(tmp_path, slow, world=3)
    axes = ["data", "neighbours", "other neighbours", "last neighbours"]
    assert [each["axis"] for each in first[0]["speeds"]] == axes
    assert others == [(DONE,)] * 2 and findings(first) == {}  # without GPUs it may be a busy core
    (line,) = [each["line"] for each in first[0]["checks"][-1]["findings"]]
    assert line.startswith("c reduces with its neighbours at ") and "the median of 3 machines is " in line


def other_torch(number: int) -> None:
    real = rank.facts.facts
    told = {"torch": "1.0"} if number else {}
    rank.facts.facts = lambda: replace(mine := real(), alike={**mine.alike, **told})  # type: ignore[assignment]


def test_another_version_is_named_and_no_group_is_made(tmp_path: Path) -> None:
    (first, (status,)) = two(tmp_path, other_torch)
    assert findings(first)["versions"][0].startswith("torch is 1.0 on b (rank 1), and ")
    assert (first[1], status) == (WRONG_INPUT, WRONG_INPUT)
    assert "traffic" not in [each["name"] for each in first[0]["checks"]]


def blind(number: int) -> None:
    if number:
        rank.token_problem = lambda *_: "it is another folder than rank 0's"


def test_a_storage_that_one_machine_does_not_see_is_named(tmp_path: Path) -> None:
    (first, _) = two(tmp_path, blind)
    assert findings(first)["storage"] == [
        f"{tmp_path} on b: it is another folder than rank 0's; put it on storage that all machines mount there "
        "(STAGECRAFT_RUNS)"
    ]


def test_a_rank_that_never_comes_keeps_nobody_waiting(tmp_path: Path) -> None:
    began = time.monotonic()
    port = local.free_port()
    ours, theirs = context.Pipe(duplex=False)
    limits = Limits(meet=2.0, answer=2.0, total=30.0)
    process = context.Process(target=_rank, args=(0, 2, port, tmp_path, nothing, limits, theirs))
    process.start()
    found = pickle.loads(ours.recv_bytes())
    process.join()
    assert time.monotonic() - began < 60 and found[1] == WRONG_INPUT and found[0]["absent"] == [1]
    assert findings(found) == {
        "ranks": [
            "rank 1 of those that were started did not answer within 2 s: start; look at the machine and what its "
            "launcher printed"
        ]
    }
    assert list(tmp_path.iterdir()) == []


def dies(number: int) -> None:
    """Rank 1 ends when its group is made."""
    agree = Meeting.agree

    def hasty(self: Meeting, what: str, value: Any, decide: Any, seconds: float) -> Any:
        return agree(self, what, value, decide, HASTY if what == "process group" else seconds)

    Meeting.agree = hasty  # type: ignore[method-assign]
    rank._start_group = lambda *_: {}  # type: ignore[assignment]
    if number:
        rank._start_group = lambda *_: os._exit(CRASHED)  # type: ignore[assignment]


def test_a_rank_that_dies_among_collectives_keeps_nobody_waiting(tmp_path: Path) -> None:
    first, second = two(tmp_path, dies)
    assert second == "ended" and first[0]["absent"] == [1]
    assert "rank 1 of those that were started did not answer within 2 s: process group" in findings(first)["ranks"][0]


def alone(number: int) -> None:
    """Rank 1 takes part in no all-reduce."""
    real = rank.measure
    rank.measure = lambda axis, groups, device, _: None if number else real(axis, groups, device, HASTY)


def test_a_collective_that_does_not_end_is_one_line(tmp_path: Path) -> None:
    first, second = two(tmp_path, alone)
    (line,) = findings(first)["traffic"]
    assert line.startswith("data groups: it failed on rank 0, first on a: ") and second == (WRONG_INPUT,)


def test_a_rank_that_does_not_reach_rank_0_says_so(tmp_path: Path) -> None:
    ours, theirs = context.Pipe(duplex=False)
    port = local.free_port()
    process = context.Process(target=_rank, args=(1, 2, port, tmp_path, nothing, replace(PATIENT, meet=1.0), theirs))
    process.start()
    found = pickle.loads(ours.recv_bytes())
    process.join()
    assert found.startswith(f"1 rank 1 cannot reach rank 0 at 127.0.0.1 port {port} within 1 s: ")
    assert found.endswith("or give another --master_port")


def test_the_command_on_this_machine(tmp_path: Path) -> None:
    done = run(tmp_path, "commands.preflight", "tiny", "--json", "--processes", "2")
    assert done.returncode == DONE, done.stderr
    values = json.loads(done.stdout)
    assert values["ok"] and values["world_size"] == 2 and values["hosts"] == 1
    values["checks"][0]["findings"] = [{"line": "", "spoils": True}]
    check("preflight", values)
    assert [each.name for each in (tmp_path / "runs").iterdir()] == []


def test_what_is_wrong_with_the_run_is_said_before_any_rank(tmp_path: Path) -> None:
    done = run(tmp_path, "commands.preflight", "tiny", "--processes", "3")
    assert done.returncode == WRONG_INPUT and done.stderr.count("\n") == 1 and "error: " in done.stderr


def test_a_killed_command_leaves_no_rank(tmp_path: Path) -> None:
    command = Command(tmp_path, "commands.preflight", "tiny", "--processes", "2")
    started: list[int] = []

    def ranks() -> bool:
        """Whether both have begun: two launchers stand above them."""
        started[:] = [each.pid for each in psutil.Process(command.pid).children(recursive=True)]
        return len(started) == 4

    command.wait_until(ranks)
    os.kill(command.pid, signal.SIGKILL)
    wait_until(lambda: all(map(ended, started)), *started)
    assert command.finish().returncode == -signal.SIGKILL


def test_what_rank_0_printed_is_found_among_other_lines() -> None:
    values = {"recipe": "x", "absent": []}
    lines = ["[WARNING] {", "n0: error: no", f"n0: {json.dumps(values)}", ""]
    assert start.found_in(lines) == values and start.found_in(lines[:2]) is None
    assert start.found_in([lines[2] + "error: of another rank, in the same line"]) == values
    text = json.dumps({"recipe": "x", "absent": list(range(1000))})
    cut = [f" 0: {text[at : at + 1024]}" for at in range(0, len(text), 1024)]  # by srun
    assert start.found_in([cut[0], "12: of another rank", *cut[1:]]) == json.loads(text)
    assert start.found_in(cut[:-1]) is None


def test_hosts_of_absent_ranks_are_named() -> None:
    assert start._whose([2, 3], ["a", "a", "b", "b"]) == ["these ranks were to be on b; look at b"]
    assert start._whose([], ["a"]) == start._whose([1], []) == []


def test_ranks_of_some_clusters_are_started_by_their_own_schedulers() -> None:
    for cluster in (None, Cluster("local"), Cluster("hostfile"), Cluster("slurm")):
        start.check_kind(cluster)
    with pytest.raises(UserError, match="give the same command there as each rank of a job"):
        start.check_kind(Cluster("kubernetes"))


def test_a_slurm_cluster_gets_a_short_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'kind = "slurm"\ngpus_per_node = 4\nruns = "{tmp_path}/runs"\ntime_limit = "2-00:00:00"\n')
    where = Where(str(file), nodes=2, dry_run=True)
    assert submit.is_for_scheduler(where)
    value = submit.submitted(
        Asked(load("tiny"), settings=("batch.global_batch=64",), run_dir=f"{tmp_path}/runs"), where
    )
    check("preflight --cluster", value)
    lines = value["text"].splitlines()
    assert capsys.readouterr().out.splitlines() == lines and value["id"] is None and list(tmp_path.iterdir()) == [file]
    for word in ('--time="00:10:00"', "--nodes=2", "--ntasks=8", "--no-requeue"):
        assert f"#SBATCH {word}" in lines
    assert f'#SBATCH --output="{tmp_path}/runs/slurm-preflight-%j.out"' in lines
    assert lines[-1] == (
        f"exec {sys.executable} -m commands preflight gpt_tiny --cluster {file} --set batch.global_batch=64 "
        f"--run-dir {tmp_path}/runs"
    )
    with pytest.raises(UserError, match="--processes and --hostfile are for starts from this machine"):
        submit.submitted(Asked(load("tiny")), replace(where, processes=2))


@pytest.mark.parametrize("where", [Where(dry_run=True), Where("local", dry_run=True), Where(nodes=2)])
def test_flags_that_are_for_a_scheduler_are_refused_without_one(where: Where) -> None:
    with pytest.raises(UserError, match=r"give (one with )?--cluster"):
        submit.is_for_scheduler(where)
