"""Ranks, launcher and command are killed, stopped and asked to end: the run goes on by itself, and nothing is left."""

import json
import math
import signal
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from launch.local import free_port
from run import rank_logs
from run.directory import end_of
from support.errors import CRASHED, DONE, GAVE_UP, STOPPED
from tests.commands.running import Command, fail, metrics, small, write_corpus
from tests.faults.runs import STEPS, Hurt
from tests.patience import ended, wait_until

GONE_SECONDS = 15.0  # that all may take to end when one of them has died; `make test` asks no machine to be that quick


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("faults")
    write_corpus(home / "corpus.jsonl")
    return home


@pytest.fixture(scope="module")
def unbroken(home: Path) -> Path:
    run = Hurt(home, "unbroken")
    assert run.finish()[0] == DONE
    return run.path


def test_a_killed_rank_costs_a_restart_and_no_number(home: Path, unbroken: Path) -> None:
    told = home / "told.jsonl"
    listener = f"{sys.executable} -c \"import sys; open('{told}', 'a').write(sys.stdin.read())\""
    run = Hurt(home, "killed", "--notify", listener).at_step(8)
    first = set(run.pids)
    run.send(signal.SIGKILL, run.rank(1))
    status, said = run.finish()
    assert status == DONE, said
    assert all(map(ended, first))
    (fault,), (restart,) = run.events("fault"), run.events("restart")
    assert (fault["rank"], fault["code"], fault["reason"]) == (1, -9, "rank 1 of 2 was killed by SIGKILL")
    assert restart["failures"] == 1 and restart["checkpoint"].startswith("step-")
    assert metrics(run.path) == metrics(unbroken)
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == ["fault", "restart", "end"]
    log = rank_logs.log_of(run.path, 0).read_text()
    assert "rank 0" in log and "this is a bug" not in log


def test_a_stopped_rank_is_named_and_the_run_goes_on(home: Path, unbroken: Path) -> None:
    run = Hurt(home, "hung", "--hang-seconds", "10").at_step(8)
    run.send(signal.SIGSTOP, run.rank(1))
    assert run.finish()[0] == DONE
    (fault,) = run.events("fault")
    assert fault["rank"] == 1 and "rank 1 of 2 is stopped (SIGSTOP" in fault["reason"]
    (stacks,) = (run.path / "logs").glob("rank-00000.step-*.stacks")
    assert "torch/distributed" in stacks.read_text()
    assert metrics(run.path) == metrics(unbroken)


@pytest.mark.faults
def test_it_gives_up_where_no_checkpoint_comes(home: Path) -> None:
    run = Hurt(home, "hopeless", "--restarts", "1", settings=("intervals.save_every=1000",))
    for launch in (1, 2):
        wait_until(lambda launch=launch: len(run.events("training")) == launch, run.command.pid)  # type: ignore[misc]
        run.at_step(3)
        run.send(signal.SIGKILL, run.rank(0))
        wait_until(lambda launch=launch: len(run.events("fault")) == launch, run.command.pid)  # type: ignore[misc]
    status, said = run.finish()
    assert status == GAVE_UP == end_of(run.path)
    assert "gave up after 2 failures without a new checkpoint; the last: rank 0 of 2 was killed by SIGKILL" in said
    assert "failure 1: rank 0 of 2 was killed by SIGKILL" in said


@pytest.mark.faults
def test_a_run_that_dies_before_its_first_step_is_not_started_again(home: Path) -> None:
    run = Hurt(home, "stillborn")
    run.command.wait_until(lambda: (run.path / "ranks" / "1.json").exists())
    run.seen().send(signal.SIGKILL, run.rank(1))
    status, said = run.finish()
    assert status == CRASHED and "rank 1 of 2 was killed by SIGKILL; go on with --resume" in said
    assert not run.events("restart") and all(map(ended, run.pids))


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_command_that_is_asked_twice_saves_once(home: Path, number: signal.Signals) -> None:
    run = Hurt(home, f"asked-{number.name}", settings=("intervals.save_every=1000",)).at_step(3)
    run.send(number, run.command.pid)
    sleep(0.01)
    run.send(number, run.command.pid)
    status, said = run.finish()
    assert (status, end_of(run.path)) == (STOPPED, STOPPED) and said.count("error:") == 1 and "Traceback" not in said
    assert [event["step"] for event in run.events("saved")] == [run.step] and run.step < STEPS
    assert not run.events("fault") and all(map(ended, run.pids))


@pytest.mark.faults
@pytest.mark.parametrize("who", ["rank", "outer", "inner"])
def test_slurm_s_warning_saves_whoever_gets_it(home: Path, who: str) -> None:
    run = Hurt(home, f"warned-{who}", settings=("intervals.save_every=1000",)).at_step(3)
    run.send(signal.SIGUSR1, run.rank(1) if who == "rank" else run.launcher(inner=who == "inner"))
    status, said = run.finish()
    assert (status, end_of(run.path)) == (STOPPED, STOPPED), said
    assert [event["step"] for event in run.events("saved")] == [run.step] and not run.events("restart")
    assert all(map(ended, run.pids))


@pytest.mark.faults
@pytest.mark.parametrize("who", ["outer", "inner"])
def test_a_killed_launcher_costs_a_restart(home: Path, unbroken: Path, who: str) -> None:
    run = Hurt(home, f"launcher-{who}").at_step(8)
    first = set(run.pids) - {run.command.pid}
    began = run.send(signal.SIGKILL, run.launcher(inner=who == "inner"))
    wait_until(lambda: all(map(ended, first)), *first)
    assert monotonic() - began < GONE_SECONDS
    assert run.finish()[0] == DONE
    (fault,) = run.events("fault")
    assert fault["reason"] == "the launcher was killed by SIGKILL"
    assert metrics(run.path) == metrics(unbroken)


@pytest.mark.parametrize("most", [math.inf, pytest.param(GONE_SECONDS, marks=pytest.mark.faults)])
def test_a_killed_command_leaves_no_process_and_resumes_at_once(home: Path, unbroken: Path, most: float) -> None:
    run = Hurt(home, f"orphans-{most}").at_step(8)
    began = run.send(signal.SIGKILL, run.command.pid)
    again = Hurt(home, f"orphans-{most}", resume=True)
    assert run.gone(began) < most
    assert again.finish()[0] == DONE
    assert metrics(again.path) == metrics(unbroken)


@pytest.mark.faults
def test_a_run_that_goes_on_has_no_second_writer(home: Path) -> None:
    run = Hurt(home, "two").at_step(3)
    line = fail(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(run.path))
    assert "another process trains in" in line and "wait for its end" in line
    run.send(signal.SIGTERM, run.command.pid)
    assert run.finish()[0] == STOPPED


@pytest.mark.faults
def test_peers_that_ignore_everything_are_gone_soon(home: Path) -> None:
    run = Hurt(home, "deaf", "--processes", "4", "--restarts", "0").at_step(3)
    run.send(signal.SIGSTOP, *(run.rank(number) for number in (1, 2, 3)))
    began = run.send(signal.SIGKILL, run.rank(0))
    assert run.finish()[0] == CRASHED
    assert run.gone(began) < GONE_SECONDS
    assert [fault["rank"] for fault in run.events("fault")] == [0]


@pytest.mark.faults
def test_two_launchers_on_one_port_say_so(home: Path, unbroken: Path) -> None:
    """Neither trains with a rank of the other: who trains has the numbers of an unbroken run."""
    port = str(free_port())
    launched = ("deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port, "--module", "recipes.gpt_tiny")
    tokens = (f"schedule.train_tokens={STEPS * 256}", "intervals.evaluate_every=1000")
    started = []
    for name in ("port-1", "port-2"):
        flags = [*small(home / "corpus.jsonl"), *tokens, "--run-dir", str(home / name)]
        started.append((home / name, Command(home, *launched, *flags)))
    done = [(path, command.finish()) for path, command in started]
    assert any(each.returncode for _, each in done)
    for path, each in done:
        if each.returncode:
            assert "--master_port" in each.stderr, each.stderr
        else:
            assert metrics(path) == metrics(unbroken)
