"""Runs that a real Slurm starts, warns, queues again and ends: each rank is on a node with a host name of its own."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.clusters import slurm
from launch.clusters.description import Slurm
from run import events, members
from support.errors import BAD_NODE, UserError
from support.json_lines import read
from tests.clusters.conftest import Submit, Submitted, settings
from tests.clusters.own_slurm import OwnSlurm
from tests.commands.running import metrics, succeed

pytestmark = pytest.mark.clusters

STEPS = 240


@pytest.fixture(scope="module")
def unbroken(home: Path) -> list[dict[str, Any]]:
    """The steps of the same run without Slurm: two ranks on this machine."""
    succeed(home, "recipes.gpt_tiny", *settings(home, STEPS), "--run-dir", str(home / "unbroken"), fresh=True)
    return metrics(home / "unbroken")


def rank(run: Submitted, number: int) -> members.Member:
    """A rank that trains, with the number that its process has for all hosts of this test."""
    found = members.read(run.path, str(number))
    assert found
    return found


def test_a_run_that_loses_a_rank_and_its_time_and_its_place_has_the_numbers_of_an_unbroken_one(
    submit: Submit, unbroken: list[dict[str, Any]]
) -> None:
    run = submit("hurt", STEPS).submit().at_step(12)
    assert (run.state, slurm.status(run.path)["nodes"]) == ("RUNNING", "n[0-1]")
    assert (rank(run, 0).host, rank(run, 1).host) == ("n0", "n1")

    os.kill(rank(run, 1).pid, signal.SIGKILL)  # the other node's: the command cannot see how it ends
    run.wait(lambda: run.events("restart"), "a restart inside the job").at_step(30)
    assert [line["reason"] for line in run.events("fault")] == ["rank 1 of 2 on node n1 was killed by SIGKILL"]
    assert run.events("fault")[0]["rank"] == 1 and not run.events("queued")

    run.own.said("scancel", "--batch", "--signal=USR1", run.id)  # what Slurm sends before the time limit
    run.wait(lambda: run.events("queued"), "the job in the queue again")
    assert [line["status"] for line in run.events("end")] == [75]
    reached = run.step
    run.wait(lambda: run.events("training")[-1]["step"] == reached and len(run.events("start")) == 2, "the second job")
    assert run.events("start")[1]["resumed"] is True

    run.at_step(reached + 12).own.said("scontrol", "requeue", run.id)  # what Slurm does to make room
    run.wait(lambda: len(run.events("start")) == 3, "the third job").at_end()
    assert run.losses == unbroken
    assert [line["status"] for line in run.events("end")] == [75, 75, 0] and len(run.events("queued")) == 1


def test_a_job_that_has_not_begun_is_cancelled(submit: Submit) -> None:
    run = submit("waiting", nodes=3).submit()  # more nodes than there are: refused at once, or never begun
    assert slurm.status(run.path)["state"] == "PENDING"
    assert slurm.stop(run.path) == f"job {run.id} was pending; it is cancelled"
    run.at_end("CANCELLED")


def test_a_run_goes_on_when_a_node_has_lost_its_power_and_is_stopped_by_its_directory(
    submit: Submit, own_slurm: OwnSlurm
) -> None:
    run = submit("dark", 10_000, ranks=2).submit().at_step(12)
    assert [rank(run, number).host for number in range(4)] == ["n0", "n0", "n1", "n1"]
    own_slurm.kill_node("n1")
    run.wait(lambda: run.state == "PENDING", "the job in the queue again")
    reached = run.step
    own_slurm.start_node("n1")
    run.wait(lambda: len(run.events("start")) > 1, "another start").at_step(reached + 1)
    assert run.events("start")[1]["resumed"] is True

    assert slurm.stop(run.path) == f"job {run.id} was asked to save and to end"
    run.at_end("FAILED")  # with 75
    assert run.events("end")[-1]["status"] == 75 and not run.events("queued")
    assert run.events("saved")[-1]["step"] == run.step
    with pytest.raises(UserError, match="is failed: there is nothing to stop"):
        slurm.stop(run.path)


def test_a_node_that_is_to_be_kept_out_is(submit: Submit) -> None:
    run = submit("bad")
    run.path.mkdir()
    events.note(run.path, "bad_node", node="n1", reason="three faults in a row")
    run.job.cluster_file.write_text("")
    text = slurm.render(run.job)
    command = next(line for line in text.splitlines() if line.endswith(" &"))
    (run.path / "job.sh").write_text(text.replace(command, f"sh -c 'exit {BAD_NODE}' &"))
    run.id = slurm.submit(run.job, run.path / "job.sh")
    (run.path / "jobs.jsonl").write_text(f'{{"kind": "slurm", "id": "{run.id}"}}\n')
    run.wait(lambda: run.state == "PENDING", "the job in the queue again")
    run.wait(lambda: "ExcNodeList=n1" in run.own.said("scontrol", "show", "job", run.id), "a node that is kept out")
    assert run.events("queued")[0]["without"] == "n1"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"partition": "gpus"}, "invalid partition specified: gpus"), ({"reservation": "mine"}, "reservation")],
)
def test_what_slurm_refuses_is_said_in_its_words(submit: Submit, given: dict[str, str], words: str) -> None:
    run = submit("refused", slurm=Slurm(gpus=False, **given))
    with pytest.raises(UserError, match=f"(?i){words}"):
        run.submit()


def test_data_are_prepared_by_an_array_and_put_together_by_a_last_job(submit: Submit, home: Path) -> None:
    run = submit("data")
    (home / "more.jsonl").write_text((home / "corpus.jsonl").read_text())
    words = ("--set", f"data.corpus={home}/more.jsonl", "data.tokeniser=bpe:300", "model.vocab_size=300")
    (home / "runs").mkdir(exist_ok=True)  # as `prepare --cluster` does: Slurm makes no folder for its output
    file = home / "data.sh"
    file.write_text(slurm.render_data("gpt_tiny", words, run.job.cluster, 2))
    array, last = slurm.submit_data(file, 2)
    done = lambda: run.own.said("squeue", "--noheader", f"--jobs={array},{last}") == ""  # noqa: E731
    run.wait(done, "the prepared data")
    assert list((home / "runs" / "data").glob("more*/manifest.json"))
    said = [path.read_text() for path in sorted((home / "runs").glob("slurm-data-*.out"))]
    assert len(said) == 3 and "data: " in said[-1]


def test_nothing_is_asked_of_a_run_that_was_not_submitted(tmp_path: Path) -> None:
    assert not list(read(tmp_path / "jobs.jsonl"))
    with pytest.raises(UserError, match="was not submitted to slurm; give a run"):
        slurm.status(tmp_path)
