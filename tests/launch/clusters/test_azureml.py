import json
import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters import azureml
from launch.clusters.description import AzureML
from support.errors import UserError
from tests.launch.clusters.jobs import azure_job

WORDS = AzureML(compute="h100")


def rendered(words: AzureML = WORDS, **changes: Any) -> dict[str, Any]:
    job = azure_job(words, **changes)
    azureml.check(job)
    found: dict[str, Any] = yaml.safe_load(azureml.render(job))
    return found


def test_a_job_asks_for_what_the_recipe_needs() -> None:
    job = rendered(time_limit="1-00:00:00", environment={"NCCL_NET": "IB", "STAGECRAFT_RUNS": "/home/me/runs"})
    assert job["type"] == "command"
    assert job["resources"] == {"instance_count": 32, "shm_size": "64g"}
    assert job["distribution"] == {"type": "pytorch", "process_count_per_instance": 8}
    assert (job["compute"], job["environment"]) == ("azureml:h100", {"image": "ghcr.io/me/stagecraft:0.2.0"})
    assert job["environment_variables"] == {"NCCL_NET": "IB"}  # the folder is where Azure mounts it
    assert job["limits"] == {"timeout": 86400}
    place = "azureml://datastores/workspaceblobstore/paths/stagecraft"
    assert job["outputs"] == {"runs": {"type": "uri_folder", "mode": "rw_mount", "path": place}}
    assert "services" not in job and "limits" not in rendered() and "environment_variables" not in rendered()
    own = rendered(words=replace(WORDS, environment="azureml:stagecraft:3", compute="azureml:h100"), image="")
    assert (own["environment"], own["compute"]) == ("azureml:stagecraft:3", "azureml:h100")


def test_a_rank_gets_the_words_as_they_were_typed(tmp_path: Path) -> None:
    """The shell itself reads the command, with a `python` that shows what it is given."""
    tool = tmp_path / "python"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$SET_UP" "$STAGECRAFT_RUNS" "$@" > {tmp_path}/given\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    command = rendered(setup=("export SET_UP=yes",), run_dir=Path("runs/gpt_13b/it's"))["command"]
    command = command.replace("${{outputs.runs}}", "/mnt/runs")
    subprocess.run(["bash", "-c", command], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/root"})
    given = (tmp_path / "given").read_text().splitlines()
    assert given[:4] == ["yes", "/mnt/runs", "-m", "recipes.gpt_13b"]
    assert given[4:8] == ["--run-dir", "/mnt/runs/gpt_13b/it's", "--resume", "auto"]
    assert given[8:] == ["--max-steps", "100", "--set", "data.corpus=$HOME/my texts"]


def test_azures_own_schema_takes_the_job(tmp_path: Path) -> None:
    """Where azure-ai-ml is installed; requirements-dev.txt leaves its 33 packages out."""
    load_job = pytest.importorskip("azure.ai.ml").load_job
    file = tmp_path / "job.yaml"
    for changes in ({}, {"time_limit": "1:00:00", "environment": {"A": "1"}, "setup": ("true",)}):
        file.write_text(azureml.render(azure_job(**changes)))
        read = load_job(file)
        assert (read.resources.instance_count, read.distribution.process_count_per_instance) == (32, 8)
        assert read.outputs["runs"].mode == "rw_mount"
    for good, bad in (("shm_size", "shm"), ("rw_mount", "mounted"), ("process_count_per_instance", "processes")):
        file.write_text(azureml.render(azure_job()).replace(good, bad))
        with pytest.raises(Exception, match=bad):
            load_job(file)


def test_secrets_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    text = azureml.render(azure_job())
    assert "very-secret-value" not in text and "WANDB_API_KEY" not in text and text == azureml.render(azure_job())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"words": AzureML()}, "azureml.compute is ''; name a compute cluster"),
    ({"words": replace(WORDS, compute="a b")}, "azureml.compute is 'a b'"),
    ({"words": replace(WORDS, experiment="a/b")}, "azureml.experiment is 'a/b'"),
    ({"words": replace(WORDS, datastore="azureml://mine")}, "write azureml://datastores/NAME/paths/FOLDER"),
    ({"words": replace(WORDS, environment="stagecraft")}, "write azureml:NAME:VERSION"),
    ({"image": ""}, "image is ''; name one with a tag, or set azureml.environment"),
    ({"image": "ghcr.io/me/it"}, "name one with a tag"),
    ({"gpus_per_node": 0}, "gpus_per_node is 0; a node needs at least 1"),
    ({"words_": ("--name", "${{inputs.x}}")}, "which Azure would put something in for"),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=[str(number) for number, _ in enumerate(BAD)])
def test_what_azure_would_refuse_is_refused_before(bad: dict[str, Any], said: str) -> None:
    changes = dict(bad)
    job = azure_job(changes.pop("words", None), **{name.strip("_"): value for name, value in changes.items()})
    with pytest.raises(UserError, match=said.replace("$", r"\$")) as error:
        azureml.check(job)
    assert "\n" not in str(error.value)


def test_submit_status_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, calls, says = tmp_path / "az", tmp_path / "calls", tmp_path / "says"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncat {says}\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    says.write_text(json.dumps({"name": "jolly_rice_1", "status": "Starting"}))
    assert azureml.submit(azure_job(), tmp_path / "job.yaml") == "jolly_rice_1"
    assert calls.read_text().split()[:5] == ["ml", "job", "create", "--file", str(tmp_path / "job.yaml")]
    line = {"time": 1.0, "kind": "azureml", "id": "jolly_rice_1", "cluster": "azureml"}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    says.write_text(json.dumps({"status": "Running", "error": None}))
    assert azureml.status(tmp_path) == {"id": "jolly_rice_1", "state": "Running", "reason": ""}
    assert azureml.stop(tmp_path).startswith("job jolly_rice_1 is cancelled")
    assert shlex.split(calls.read_text().splitlines()[-1]) == ["ml", "job", "cancel", "--name", "jolly_rice_1"]
    says.write_text(json.dumps({"status": "Failed", "error": {"message": "no quota"}}))
    assert azureml.status(tmp_path)["reason"] == "no quota"
    with pytest.raises(UserError, match="is failed: there is nothing to stop"):
        azureml.stop(tmp_path)
    tool.write_text("#!/bin/sh\necho 'ERROR: Please run az login' >&2; exit 1\n")
    with pytest.raises(UserError, match="ERROR: Please run az login"):
        azureml.submit(azure_job(), tmp_path / "job.yaml")
    tool.unlink()
    with pytest.raises(UserError, match="az is not on this machine; install Azure's command line"):
        azureml.status(tmp_path)
