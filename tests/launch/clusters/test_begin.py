"""Where a start goes: here, over a hostfile, to a scheduler; and what is known before."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.care import Care
from launch.clusters import begin as beginning
from launch.clusters.asked import Where, words
from launch.clusters.begin import begin
from launch.clusters.data import prepared_there
from launch.clusters.description import built_in
from launch.clusters.submit import last_job
from recipes.registry import load
from run import members
from run.request import Request
from support import json_lines
from support.errors import UserError
from tests.commands.running import small, write_corpus
from tests.launch.clusters.fake import Fake, play
from tests.run import directories


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A small run whose data is not prepared."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(
        "launch.clusters.asked._check_json", lambda run: None
    )  # tests/commands/test_clusters.py lets it
    _, *settings = small(write_corpus(tmp_path / "corpus.jsonl"))
    return Request(settings=tuple(settings))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return play(monkeypatch)


def toml(tmp_path: Path, *lines: str) -> str:
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `start` is called with, instead of starting; the environment at that moment comes last."""
    calls: list[Any] = []
    monkeypatch.setattr(beginning, "start", lambda *given: calls.append((*given, dict(os.environ))) or {})
    return calls


def test_a_job_is_submitted_and_noted(
    request_of: Request, slurm: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = begin(load("tiny"), request_of, Where("slurm"), Care(restarts=0))
    (job,) = slurm.jobs
    assert (job.nodes, job.gpus_per_node, job.world_size, job.cluster.gpu) == (1, 2, 2, "cpu")
    assert job.words == ("--restarts", "0", "--set", *request_of.settings)
    assert job.run_dir.parent == tmp_path / "runs" / "gpt_tiny" and (job.stop_seconds, job.seconds) == (30.0, 0.0)
    assert value["id"] == "41" and (job.run_dir / "job.sh").read_text() == value["text"]
    noted = json_lines.read(job.run_dir / "jobs.jsonl")
    assert [(line["kind"], line["id"], line["cluster"]) for line in noted] == [
        ("slurm", "41", str(built_in()["slurm"]))
    ]
    assert last_job(job.run_dir) == noted[0]
    out, err = capsys.readouterr()
    assert f"as slurm job 41; run: {job.run_dir}" in out and "the data is not prepared yet" in err


def test_tasks_that_cannot_be_run_are_not_submitted(request_of: Request, slurm: Fake, tmp_path: Path) -> None:
    wrong = (*request_of.settings, "tasks.names=mine", f"tasks.folder={tmp_path / 'none'}")
    with pytest.raises(ValueError, match=r"--task-folder .*none is no directory"):
        begin(load("tiny"), replace(request_of, settings=wrong), Where("slurm"), Care())
    assert not slurm.jobs


def test_a_dry_run_prints_the_text_and_writes_nothing(
    request_of: Request, slurm: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    value = begin(load("tiny"), request_of, Where("slurm", nodes=2, dry_run=True), Care())
    assert capsys.readouterr().out == value["text"] and value["id"] is None
    assert "NCCL_NET=IB\n" in value["text"] and "4: pretrain gpt_tiny --set" in value["text"]
    assert sorted(tmp_path.rglob("*")) == before and not slurm.jobs


def test_what_the_scheduler_refuses_leaves_nothing(request_of: Request, slurm: Fake, tmp_path: Path) -> None:
    slurm.refuses = "sbatch: error: invalid partition specified: gpu"
    with pytest.raises(UserError, match="invalid partition"):
        begin(load("tiny"), request_of, Where("slurm"), Care())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("recipe", "nodes", "words"), [
    ("tiny", 2, "gpt_tiny is not prepared below .*make data-tiny CLUSTER=slurm ARGS='--set data.co.*bpe:300 .*'"),
    ("tiny", -1, "--nodes is -1; it must be at least 1"),
    ("tiny", 3, "global batch 8 does not divide by micro-batch 2 x data degree 6"),
    ("530b", 10, "needs at least 280 ranks .* here are 80"),
    ("530b", 36, "tp 8 x pp 35 x ulysses 1 = 280 does not divide 288 ranks"),
])  # fmt: skip
def test_what_cannot_run_is_one_line_before_anything_starts(
    recipe: str, nodes: int, words: str, request_of: Request, slurm: Fake, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        begin(load(recipe), request_of if recipe == "tiny" else Request(), Where("slurm", nodes=nodes), Care())
    assert "\n" not in str(refused.value) and not slurm.jobs and not (tmp_path / "runs").exists()


def test_flags_that_do_not_go_together(request_of: Request, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("worker-1 slots=2\nworker-2 slots=2\n")
    evil = tmp_path / "evil"
    evil.write_text("worker-$(id) slots=2\n")
    for where, said in [
        (Where(nodes=2), "give --cluster too"),
        (Where("slurm", processes=2), "leave them out"),
        (Where("slurm", hostfile=str(hosts)), "leave them out"),
        (Where("local", hostfile=str(hosts)), "kind hostfile"),
        (Where("local", nodes=2), "2 nodes are more than this machine"),
        (Where("hostfile"), "give --hostfile, or set hostfile.path"),
        (Where("hostfile", nodes=3, hostfile=str(hosts)), "names 2"),
        (Where("hostfile", hostfile=str(evil)), "is no name of a host"),
        (Where("slrum"), "there is no cluster 'slrum'; did you mean slurm? or give a file such as mine.toml"),
        (Where("xyz"), "there are azureml, hostfile, k8s, local, slurm, or give a file such as mine.toml"),
        (Where(""), "--cluster is empty; there are azureml"),
    ]:
        with pytest.raises(UserError) as refused:
            begin(load("tiny"), request_of, where, Care())
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_local_cluster_starts_here_with_what_its_file_says(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = started(monkeypatch)
    lines = ['kind = "local"', "gpus_per_node = 1", f'runs = "{tmp_path}/elsewhere"', 'setup = ["export LEFT=behind"]']
    begin(load("tiny"), request_of, Where(toml(tmp_path, *lines, "[environment]", 'OWN = "1 2"')), Care())
    ((recipe, request, processes, hostfile, care, _, environment),) = calls
    assert (recipe.name, processes, hostfile, care) == ("gpt_tiny", 1, None, Care())
    assert environment["OWN"] == "1 2" and environment["LEFT"] == "behind" and "NCCL_NET" not in environment
    assert Path(request.run_dir).parent == tmp_path / "elsewhere" / "gpt_tiny"
    assert "OWN" not in os.environ and "LEFT" not in os.environ
    with pytest.raises(UserError, match=r"mine.toml: setup ended with status 127 and said: .*no-such-command"):
        begin(load("tiny"), request_of, Where(toml(tmp_path, 'kind = "local"', 'setup = ["no-such-command"]')), Care())


def test_a_hostfile_of_several_nodes_gets_the_link_s_variables(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = started(monkeypatch)
    monkeypatch.setattr("inference.teach.missing", lambda run: [])
    monkeypatch.setenv("NCCL_IB_TIMEOUT", "23")
    (tmp_path / "hosts").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    file = toml(tmp_path, 'kind = "hostfile"', "[hostfile]", f'path = "{tmp_path}/hosts"')
    begin(load("tiny"), request_of, Where(file), Care())
    ((_, _, processes, hostfile, _, cluster, environment),) = calls
    assert (processes, hostfile, cluster.kind) == (None, f"{tmp_path}/hosts", "hostfile")
    assert (environment["NCCL_NET"], environment["NCCL_IB_TIMEOUT"]) == ("IB", "23")


def test_a_dry_run_here_is_a_command_line_without_secrets(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    monkeypatch.setenv("MINE", "also-secret")
    lines = ['kind = "local"', 'setup = ["module load x"]', 'secrets = ["MINE", "WANDB_API_KEY"]', "[environment]"]
    file = toml(tmp_path, *lines, 'SPACED = "a b"', 'STORE_KEY_FILE = "third-secret"')
    before = sorted(tmp_path.rglob("*"))
    begin(load("tiny"), request_of, Where(file, dry_run=True), Care())
    out = capsys.readouterr().out
    assert "secret" not in out.replace(str(tmp_path), "") and "WANDB_API_KEY=*** " in out and "MINE=*** " in out
    assert out.startswith("module load x\n") and "SPACED='a b' \\\n" in out
    typed = shlex.split(out.replace("\\\n", "").splitlines()[-1])
    command = [word for word in typed if "=" not in word]
    assert command[1:4] == ["-m", "launch.runner", "--log_level"] and command[-2] == "--run-dir"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_over_ssh_shows_a_line_for_each_host(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "0123456789")
    (tmp_path / "hosts").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    file = toml(tmp_path, 'kind = "hostfile"', 'setup = ["module load x"]', "[hostfile]", f'path = "{tmp_path}/hosts"')
    begin(load("tiny"), request_of, Where(file, dry_run=True), Care())
    out = capsys.readouterr().out
    assert "# HF_TOKEN=***\n" in out and "# NCCL_NET=IB\n" in out and "0123456789" not in out
    assert out.count("ssh -T") == 2 and " worker-2 " in out and out.count("module load x") == 2


def test_a_secret_in_the_text_of_a_job_is_refused(
    request_of: Request, slurm: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    file = toml(tmp_path, 'kind = "slurm"', "[environment]", 'OTHER = "0123456789"')
    with pytest.raises(UserError, match=r"the value of \$WANDB_API_KEY would stand in the job's text"):
        begin(load("tiny"), request_of, Where(file, dry_run=True), Care())
    monkeypatch.setenv("MY_TOKEN", "abcdefghij")
    monkeypatch.setenv("KEYBOARD_TOKEN", str(tmp_path / "runs"))  # a path is none
    for where, care, said in [
        (Where("slurm"), Care(notify="tell abcdefghij"), r"the value of \$MY_TOKEN would stand in the job's text"),
        (Where("slurm"), Care(notify="curl https://hooks/T0/B0/x"), "--notify calls an address, .* give --notify its"),
        (
            Where("slurm"),
            Care(notify="tell ftp://me:pass@x/"),
            r"password of ftp://me:\*\*\*@ would stand in the job's",
        ),
    ]:
        with pytest.raises(UserError, match=said) as refused:
            begin(load("tiny"), request_of, where, care)
        assert "pass@" not in str(refused.value) and not (tmp_path / "runs").exists()


def test_a_secret_in_the_text_of_a_data_job_is_refused(tmp_path: Path) -> None:
    proxy = toml(tmp_path, 'kind = "slurm"', "[environment]", 'https_proxy = "http://me:pass@proxy:80"')
    with pytest.raises(UserError, match="would stand in the job's text"):
        prepared_there("gpt_tiny", {"node": 0}, [], proxy, 1, True)


def test_a_run_that_goes_on_is_not_submitted_again(
    request_of: Request, slurm: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directories.run(tmp_path / "runs", "x", name="mine")
    value = begin(load("tiny"), Request(run_dir="mine", resume=True), Where("slurm", dry_run=True), Care())
    assert value["run"] == str(path)
    monkeypatch.setattr(members, "others", lambda folder: [members.Member("supervisor", 7, "node-1", 0)])
    with pytest.raises(UserError, match="is trained in by pid 7 on node-1"):
        begin(load("tiny"), Request(run_dir="mine", resume=True), Where("slurm"), Care())


def test_a_run_whose_job_waits_is_not_submitted_again(request_of: Request, slurm: Fake, tmp_path: Path) -> None:
    path = directories.run(tmp_path / "runs", "x", name="mine")
    again = Request(run_dir="mine", resume=True)
    begin(load("tiny"), again, Where("slurm"), Care())
    with pytest.raises(UserError, match=f"job 41 of {path} is pending already; stop it first: stagecraft stop --run"):
        begin(load("tiny"), again, Where("slurm"), Care())
    slurm.state = "FAILED"
    assert begin(load("tiny"), again, Where("slurm"), Care())["id"] == "42" == str(len(slurm.jobs) + 40)


def test_words_are_those_that_were_typed() -> None:
    request = Request("ds_configs/zero2_bf16.json", ("a.b=1", "c.d=2"), 5, "x", seed=3, name="n", allow_change=True)
    typed = "--deepspeed_config ds_configs/zero2_bf16.json --max-steps 5 --seed 3 --name n --hang-seconds 7.0"
    assert words(request, Care(hang_seconds=7.0)) == (*typed.split(), "--allow-change", "--set", "a.b=1", "c.d=2")


def test_storage_that_is_not_here_keeps_its_record_here(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = play(monkeypatch, "kubernetes")
    file = toml(tmp_path, 'kind = "kubernetes"', f'runs = "{tmp_path}/in-the-pods"')
    value = begin(load("tiny"), request_of, Where(file, nodes=2), Care())
    (job,) = kube.jobs
    assert job.run_dir.parent == tmp_path / "in-the-pods" / "gpt_tiny" and not job.run_dir.exists()
    assert Path(value["run"]) == tmp_path / "runs" / "gpt_tiny" / job.run_dir.name
    assert sorted(each.name for each in Path(value["run"]).iterdir()) == ["job.yaml", "jobs.jsonl"]
    assert job.cluster.environment["STAGECRAFT_RUNS"] == f"{tmp_path}/in-the-pods"
    assert job.cluster.environment["NCCL_IB_DISABLE"] == "1"  # without an RDMA adapter pods have Ethernet alone
    assert "shows when the job runs" in capsys.readouterr().err
    kube.state = "FAILED"
    for which in (job.run_dir.name, value["run"], str(job.run_dir)):
        begin(load("tiny"), replace(request_of, run_dir=which, resume=True), Where(file, nodes=2), Care())
        assert kube.jobs[-1].run_dir == job.run_dir and kube.jobs[-1].words == job.words
    assert len(json_lines.read(Path(value["run"]) / "jobs.jsonl")) == 4


def test_a_run_whose_job_never_began_is_given_again_as_before(request_of: Request, slurm: Fake) -> None:
    path = begin(load("tiny"), replace(request_of, name="mine"), Where("slurm"), Care())["run"]
    slurm.state = "FAILED"
    with pytest.raises(
        UserError, match=f"{path} has not begun yet; give the first command again, with --run-dir {path}"
    ):
        begin(load("tiny"), replace(request_of, run_dir="mine", resume=True), Where("slurm"), Care())
    again = begin(load("tiny"), replace(request_of, run_dir=str(path)), Where("slurm"), Care())
    assert (again["run"], again["id"]) == (path, "42")
    again = begin(load("tiny"), replace(request_of, name="mine", auto=True), Where("slurm"), Care())
    assert (again["run"], again["id"]) == (path, "43")


def test_another_gpu_and_too_little_memory_are_said(
    slurm: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("launch.clusters.asked._check_json", lambda run: None)
    begin(load("13b"), Request(), Where(toml(tmp_path, 'kind = "slurm"', 'gpu = "h100"'), dry_run=True), Care())
    assert "gpt_13b was planned for a100-80gb, and here are h100; see stagecraft plan 13b" in capsys.readouterr().err
    begin(load("175b"), Request(settings=("layout.pp=2",)), Where("slurm", nodes=2, dry_run=True), Care())
    assert "by the plan it does not fit" in capsys.readouterr().err
    with pytest.raises(UserError, match="a v100-32gb has no bf16"):
        begin(load("13b"), Request(), Where(toml(tmp_path, 'kind = "slurm"', 'gpu = "v100"'), dry_run=True), Care())
