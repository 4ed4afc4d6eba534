"""What a scheduler's tool prints, when that is not what it should be."""

import stat
from pathlib import Path

import pytest

from launch.clusters import azureml, kubernetes, slurm
from support.errors import UserError
from tests.launch.clusters.jobs import azure_job, kubernetes_job

TOOLS = ("sbatch", "squeue", "sacct", "scancel", "kubectl", "az")
IDS = {"slurm": "7", "kubernetes": "default/trainjob/mine", "azureml": "mine"}


def says(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, status: int = 0) -> None:
    """Let every tool print a line, and note what it was asked."""
    for name in TOOLS:
        tool = folder / name
        tool.write_text(f"#!/bin/sh\necho {name} \"$@\" >> {folder}/calls\nprintf '%s' '{line}'\nexit {status}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("line", ["rubbish", "[]", "7 jobs"])
def test_rubbish_is_a_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(tmp_path, monkeypatch, line)
    for kind, number in IDS.items():
        run = tmp_path / kind
        run.mkdir()
        (run / "jobs.jsonl").write_text(f'{{"time": 1.0, "kind": "{kind}", "id": "{number}", "cluster": "c"}}\n')
    file = tmp_path / "job"
    for call in (
        lambda: slurm._submitted(file),
        lambda: slurm.status(tmp_path / "slurm"),
        lambda: slurm.stop(tmp_path / "slurm"),
        lambda: kubernetes.submit(kubernetes_job(), file),
        lambda: kubernetes.stop(tmp_path / "kubernetes"),
        lambda: azureml.submit(azure_job(), file),
        lambda: azureml.stop(tmp_path / "azureml"),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert repr(line) in str(refused.value) and "\n" not in str(refused.value)
    calls = (tmp_path / "calls").read_text()
    assert "scancel" not in calls and "cancel" not in calls and "delete" not in calls


def test_a_tool_that_fails_without_a_word_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(tmp_path, monkeypatch, "", status=3)
    with pytest.raises(UserError, match=r"sbatch .* ended with status 3 and said nothing; give the command on a login"):
        slurm._submitted(tmp_path / "job")


def test_a_job_that_slurm_began_anew_or_holds_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"time": 1.0, "kind": "slurm", "id": "7", "cluster": "c"}\n')
    for state, done in (
        ("PENDING", "job 7 was pending; it is cancelled"),
        ("REQUEUE_HOLD", "job 7 was requeue_hold; it is cancelled"),
        ("RUNNING", "job 7 was asked to save and to end"),
    ):
        says(tmp_path, monkeypatch, f"{state}|None|0:10")
        assert slurm.stop(tmp_path) == done
    says(tmp_path, monkeypatch, "CANCELLED by 1000|None|0:10")
    assert slurm.status(tmp_path)["state"] == "CANCELLED"
    with pytest.raises(UserError, match=r"job 7 of .* is cancelled: there is nothing to stop"):
        slurm.stop(tmp_path)
