"""`clusters`, `status`, `logs`, `stop`, and `--cluster`, as one types them; the scheduler is played."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands.__main__ import main
from run import members
from support.errors import WRONG_INPUT
from support.files import locked
from tests.commands.documented import check
from tests.commands.running import small, write_corpus
from tests.launch.clusters.fake import Fake, play
from tests.run import directories

Called = Callable[..., str]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Called:
    """Calls a command in this process and reads what it prints."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["stagecraft", *arguments])
        main()
        return capfd.readouterr().out

    return call


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return play(monkeypatch)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for the command of a run."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def value_of(called: Called, *arguments: str) -> Any:
    return json.loads(called(*arguments, "--json"))


def refused(called: Called, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as ended:
        called(*arguments)
    out, error = capfd.readouterr()
    assert (ended.value.code, out, error.count("\n")) == (WRONG_INPUT, "", 1), error
    return error


def member(path: Path, name: str, pid: int, host: str = "") -> None:
    """Let a process say that it belongs to a run."""
    file = members.join(path, name)
    began = members.began_at(pid) or 0
    file.write_text(json.dumps({"name": name, "pid": pid, "host": host or os.uname().nodename, "began": began}))


def test_clusters_are_listed_and_checked(called: Called, tmp_path: Path) -> None:
    listed = value_of(called, "clusters")
    check("clusters", listed)
    assert [each["name"] for each in listed] == ["azureml", "hostfile", "k8s", "local", "slurm"]
    assert "infiniband" in called("clusters")
    mine = tmp_path / "mine.toml"
    mine.write_text('kind = "slurm"\nnodes = 4\n[slurm]\npartition = "gpu"\n[environment]\nA_TOKEN_FILE = "x"\n')
    shown = called("clusters", str(mine))
    assert "partition = gpu" in shown and "NCCL_NET = IB" in shown and "A_TOKEN_FILE = ***" in shown


def test_a_run_is_submitted_looked_at_and_stopped(called: Called, slurm: Fake, tmp_path: Path) -> None:
    submit = ("pretrain", "tiny", *small(write_corpus(tmp_path / "corpus.jsonl")), "--cluster", "slurm")
    value = value_of(called, *submit, "--name", "mine", "--dry-run")
    check("pretrain --cluster", value)
    assert not Path(value["run"]).exists()
    run = Path(value_of(called, *submit, "--name", "mine")["run"])
    for which in ("mine", run.name, str(run)):
        standing = value_of(called, "status", "--run", which)
        assert (standing["run"], standing["status"], standing["on"]) == (str(run), "never started", None)
    assert standing["job"]["id"] == "41" and standing["scheduler"] == {"state": "PENDING", "why": "Priority"}
    check("status", standing)
    assert "job        41 of slurm" in called("status")
    assert value_of(called, "runs")[0]["run"] == str(run)
    stopped = value_of(called, "stop", "--run", "mine")
    check("stop", stopped)
    assert stopped == {"run": str(run), "done": "asked job 41 to save and stop"} and slurm.stopped == [run]


def test_a_start_whose_job_waits_is_not_cleaned_away(called: Called, slurm: Fake, tmp_path: Path) -> None:
    path = directories.run(tmp_path / "runs", "x", steps=0, name="mine", status=None)
    (path / "jobs.jsonl").write_text('{"time": 1.0, "kind": "slurm", "id": "7", "cluster": "c.toml", "name": null}\n')
    assert value_of(called, "clean-runs", "--yes")["leftovers"] == [] and path.is_dir()
    slurm.state = "FAILED"
    assert value_of(called, "clean-runs", "--yes")["removed"] and not path.exists()


def test_what_the_scheduler_cannot_say_is_said(called: Called, slurm: Fake, tmp_path: Path) -> None:
    from support.errors import UserError

    def silent(run: Path) -> Any:
        raise UserError("there is no squeue here")

    path = directories.run(tmp_path / "runs", "x", name="mine")
    (path / "jobs.jsonl").write_text('{"time": 1.0, "kind": "slurm", "id": "7", "cluster": "c.toml", "name": null}\n')
    slurm.status = silent  # type: ignore[method-assign]
    assert value_of(called, "status", "--run", "mine")["scheduler"] == {"unknown": "there is no squeue here"}
    assert "finished, step 3 of 1,600" in called("status", "--run", "mine")


def test_a_run_of_this_machine_is_stopped(
    called: Called, tmp_path: Path, sleeper: "subprocess.Popen[bytes]", capfd: pytest.CaptureFixture[str]
) -> None:
    path = directories.run(tmp_path / "runs", "x", name="mine")
    assert "does not run; its newest checkpoint" in refused(called, capfd, "stop", "--run", "mine")
    with locked(path / ".lock"):
        member(path, "00000", sleeper.pid)
        assert "its ranks save and end by themselves" in refused(called, capfd, "stop", "--run", "mine")
        member(path, members.SUPERVISOR, 1, host="node-7")
        assert "by pid 1 on node-7; give the same command there" in refused(called, capfd, "stop", "--run", "mine")
        member(path, members.SUPERVISOR, sleeper.pid)
        standing = value_of(called, "status", "--run", "mine")
        assert (standing["status"], standing["on"]) == ("running", f"pid {sleeper.pid} on {os.uname().nodename}")
        assert f"asked pid {sleeper.pid}" in called("stop", "--run", "mine")
        assert sleeper.wait() == -signal.SIGTERM
    assert not psutil.pid_exists(sleeper.pid)


def test_logs_are_those_that_say_most(called: Called, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = directories.run(tmp_path / "runs", "x", name="mine")
    assert "has no logs yet" in refused(called, capfd, "logs", "--run", "mine")
    (path / "logs").mkdir()
    for rank in range(3):
        (path / "logs" / f"rank-{rank:05d}.log").write_text("".join(f"rank {rank} line {n}\n" for n in range(100)))
    (path / "slurm-41.out").write_text("before there were ranks\n")
    directories.lines(path / "events.jsonl", [{"time": 1.0, "event": "fault", "rank": 2, "reason": "was killed"}])
    value = value_of(called, "logs", "--run", "mine")
    check("logs", value)
    assert [Path(each["file"]).name for each in value["logs"]] == ["slurm-41.out", "rank-00000.log", "rank-00002.log"]
    assert value["logs"][1]["lines"] == [f"rank 0 line {n}" for n in range(60, 100)]
    shown = called("logs", "--run", "mine", "--rank", "1", "--follow")  # it has ended: nothing to wait for
    assert shown.startswith(f"==> {path / 'logs' / 'rank-00001.log'} <==\nrank 1 line 60\n")
    line = refused(called, capfd, "logs", "--run", "mine", "--rank", "9")
    assert "has no log of rank 9; there are rank-00000 to rank-00002" in line


def test_data_is_prepared_by_a_scheduler(
    called: Called, slurm: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(called, capfd, "prepare", "tiny", "--cluster", "slurm")
    assert "give stagecraft prepare gpt_tiny where its storage is mounted" in line
    line = refused(called, capfd, "prepare", "tiny", "--cluster", "azureml")
    assert "with STAGECRAFT_RUNS set to the folder of azureml://datastores/workspaceblobstore/" in line
    line = refused(called, capfd, "prepare", "tiny", "--cluster", "k8s")
    assert "with STAGECRAFT_RUNS set to what runs says in " in line
    given: list[Any] = []
    slurm.render_data = lambda *all: given.append(all) or "text\n"  # type: ignore[attr-defined]
    slurm.submit_data = lambda file, nodes: (given.append((file.read_text(), nodes)), ("1", "2"))[1]  # type: ignore
    more = ("--workers", "3", "--set", "data.tokeniser=bpe:300")
    prepare = ("prepare", "tiny", "--cluster", "slurm", "--nodes", "4", *more)
    value = value_of(called, *prepare, "--dry-run")
    check("prepare --cluster", value)
    assert value["jobs"] == [] and not (tmp_path / "runs").exists()
    assert value_of(called, *prepare)["jobs"] == ["1", "2"]
    recipe, words, _, nodes = given[-2]
    assert (recipe, nodes, given[-1]) == ("gpt_tiny", 4, ("text\n", 4))
    assert words == more
    text = called("prepare", "tiny", "--dry-run")
    assert text.endswith(" -m commands prepare gpt_tiny\n")


def test_a_real_json_is_read_by_deepspeed_before_it_is_submitted(
    called: Called, slurm: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        from support.errors import UserError

        raise UserError("DeepSpeed refuses it")

    monkeypatch.setattr("model.engine.build.check_json", refuse)
    assert "DeepSpeed refuses it" in refused(called, capfd, "pretrain", "tiny", "--cluster", "slurm")
    assert not (tmp_path / "runs").exists()
