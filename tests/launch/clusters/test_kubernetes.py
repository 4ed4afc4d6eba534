import json
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters import kubeflow, kubernetes
from launch.clusters.description import Kubernetes, read
from launch.clusters.time_limit import seconds_of
from recipes.registry import ROOT
from support.errors import UserError
from tests.launch.clusters.jobs import KUBERNETES, kubernetes_job

FULL = replace(KUBERNETES, secret="keys", rdma_count=8, namespace="nlp")
PAGE = ROOT / "docs" / "clusters" / "kubernetes.md"
KINDS = {"TrainingRuntime": "TrainerV1alpha1TrainingRuntime", "TrainJob": "TrainerV1alpha1TrainJob"}


def objects(**changes: object) -> list[dict[str, Any]]:
    words = changes.pop("words", FULL)
    assert isinstance(words, Kubernetes)
    job = kubernetes_job(words, **changes)
    kubernetes.check(job)
    return list(yaml.safe_load_all(kubernetes.render(job)))


def as_kubeflow_reads(thing: dict[str, Any]) -> Any:
    """An object as the official models have it: what they do not know is missing then."""
    if thing["kind"] == "PyTorchJob":
        from kubeflow.training import models as old
        from kubernetes.client import ApiClient, Configuration, models

        class Reader(ApiClient):
            def read(self, value: Any, kind: Any) -> Any:
                return self._ApiClient__deserialize(value, kind)

            def known(self, name: str) -> Any:
                return getattr(old, name, None) or getattr(models, name)

        for name in dir(old):
            if name.startswith("KubeflowOrg"):
                setattr(models, name, getattr(old, name))  # the client looks names up here
        client = Reader(Configuration())
        return client.sanitize_for_serialization(client.read(thing, old.KubeflowOrgV1PyTorchJob))
    from kubeflow_trainer_api import models as new

    read = getattr(new, KINDS[thing["kind"]]).from_dict(thing)
    return json.loads(read.to_json())


@pytest.mark.parametrize("gang", ["", "kueue", "volcano"])
@pytest.mark.parametrize("api", ["trainjob", "pytorchjob"])
def test_kubeflows_own_models_know_every_key(api: str, gang: str) -> None:
    words = replace(FULL, api=api, gang=gang, queue="team" if gang else "")  # type: ignore[arg-type]
    found = objects(words=words, setup=("ulimit -l unlimited",), time_limit="1-00:00:00", environment={"A": "1"})
    assert [each["kind"] for each in found] == (
        ["TrainingRuntime", "TrainJob"] if api == "trainjob" else ["PyTorchJob"]
    )
    for each in found:
        assert as_kubeflow_reads(each) == each


def test_the_models_refuse_what_is_no_job() -> None:
    runtime, job = objects()
    job["spec"]["trainer"]["numNodes"] = "32"
    with pytest.raises(ValueError, match="numNodes"):
        as_kubeflow_reads(job)
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["volume"] = []
    assert as_kubeflow_reads(runtime) != runtime
    old = objects(words=replace(FULL, api="pytorchjob"))[0]
    old["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["volume"] = []
    assert as_kubeflow_reads(old) != old


def test_a_train_job_asks_for_what_the_recipe_needs() -> None:
    runtime, job = objects(time_limit="2-00:00:00", environment={"NCCL_NET": "IB"})
    trainer, spec = job["spec"]["trainer"], runtime["spec"]["template"]["spec"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (32, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "8", "rdma/hca": "8"}
    assert trainer["resourcesPerNode"]["requests"] == trainer["resourcesPerNode"]["limits"]
    assert job["spec"]["activeDeadlineSeconds"] == 172800
    assert job["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == job["metadata"]["name"]
    assert runtime["metadata"]["namespace"] == job["metadata"]["namespace"] == "nlp"
    variables = {each["name"]: each.get("value") for each in trainer["env"]}
    assert variables["NCCL_NET"] == "IB" and variables["STAGECRAFT_RUNS"] == "/runs"
    node = spec["replicatedJobs"][0]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["name"] == node["name"] == "node"  # the operator looks for these
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"]}
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounts == {"shared-memory": "/dev/shm", "runs": "/runs"} and mounts.keys() == volumes.keys()
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_the_command_reaches_the_ranks_as_it_was_typed() -> None:
    command = objects()[1]["spec"]["trainer"]["command"]
    assert command[:3] == ["python", "-m", "launch.clusters.node"]
    assert command[command.index("--run-dir") + 1] == "/runs/gpt_13b/mine"
    # Kubernetes makes one dollar of two and acts upon $(NAME).
    assert command[-5:] == ["recipes.gpt_13b", "--max-steps", "100", "--set", "data.corpus=$$HOME/my texts"]
    assert not any(re.search(r"(?<!\$)\$(\$\$)*(?!\$)", word) for word in command)
    first = objects(setup=("module load cuda", "ulimit -l unlimited"))[1]["spec"]["trainer"]["command"]
    script = 'set -e\nmodule load cuda\nulimit -l unlimited\nexec "$$@"'
    assert first[:4] == ["bash", "-c", script, "bash"] and first[4:] == command


@pytest.mark.parametrize(("stop", "seconds"), [(30.0, 90), (81.2, 142), (1271.0, 1331)])
def test_a_save_fits_into_the_time_that_a_pod_has_to_end(stop: float, seconds: int) -> None:
    """60 s for the step in hand; what a stop may take; 30 s more for the container itself."""
    runtime, job = objects(stop_seconds=stop)
    command = job["spec"]["trainer"]["command"]
    assert command[command.index("--stop-seconds") + 1] == str(seconds)
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == seconds + 30


def fate(job_set: dict[str, Any], code: int | None, moved: bool = False) -> str:
    """What Kubernetes and JobSet do when a pod ends with a status; the messages are the Job controller's."""
    spec = job_set["replicatedJobs"][0]["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if codes and code in codes["values"] and codes["operator"] == "In":
            said = f"Container node for pod nlp/x-0 failed with exit code {code} matching FailJob rule at index {index}"
            reason, message = "PodFailurePolicy", said
            break
        if moved and any(each["type"] == "DisruptionTarget" for each in rule.get("onPodConditions", [])):
            said = f"Pod nlp/x-0 has condition DisruptionTarget matching FailJob rule at index {index}"
            reason, message = "PodFailurePolicy", said
            break
    for rule in job_set["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(each, message) for each in patterns):
            return str(rule["action"])
    return "RestartJobSet"


def test_exit_statuses_decide_whether_a_train_job_begins_anew() -> None:
    job_set = objects()[0]["spec"]["template"]["spec"]
    spec = job_set["replicatedJobs"][0]["template"]["spec"]
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert [fate(job_set, code) for code in (2, 3, 77)] == ["FailJobSet"] * 3
    assert [fate(job_set, code) for code in (1, 137, 134)] == ["RestartJobSet"] * 3
    assert fate(job_set, 75) == fate(job_set, None, moved=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert fate(job_set, 2, moved=True) == "FailJobSet"
    values = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert values == sorted(values)  # else the API server refuses them


def test_a_longer_run_on_more_gpus_may_crash_more_often() -> None:
    # 256 GPUs for 6 days are 36,864 GPU hours: 0.74 failures by one in 50,000 hours.
    assert kubeflow.tries(kubernetes_job()) == 12
    assert kubeflow.tries(kubernetes_job(nodes=280, seconds=37 * 86400.0)) == 10 + 80
    assert kubeflow.tries(kubernetes_job(seconds=0.0)) == 10


def test_a_pytorch_job_asks_for_what_the_recipe_needs() -> None:
    job = objects(words=replace(FULL, api="pytorchjob"), time_limit="1:00:00")[0]
    spec = job["spec"]
    assert spec["nprocPerNode"] == "8"
    assert {name: each["replicas"] for name, each in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 31}
    for each in spec["pytorchReplicaSpecs"].values():
        container = each["template"]["spec"]["containers"][0]
        assert container["name"] == "pytorch"  # the operator looks for it
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        # ExitCode restarts a pod for 128 and more only.
        assert each["restartPolicy"] == "ExitCode"
        assert container["command"][container["command"].index("--again") + 1] == "138"
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running", "backoffLimit": 12, "activeDeadlineSeconds": 3600}
    alone = objects(words=replace(FULL, api="pytorchjob"), nodes=1)[0]
    assert list(alone["spec"]["pytorchReplicaSpecs"]) == ["Master"]


def test_a_queue_and_a_gang_are_said_to_whoever_asks() -> None:
    kueue = objects(words=replace(FULL, gang="kueue", queue="team"))
    assert kueue[1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    volcano = objects(words=replace(FULL, gang="volcano", queue="team"))
    assert "kueue.x-k8s.io/queue-name" not in volcano[1]["metadata"]["labels"]
    spec = volcano[0]["spec"]
    assert spec["podGroupPolicy"] == {"volcano": {}}
    assert spec["template"]["metadata"]["annotations"] == {"scheduling.volcano.sh/queue-name": "team"}
    pod = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["schedulerName"] == "volcano"
    old = objects(words=replace(FULL, api="pytorchjob", gang="volcano", queue="team"))[0]
    assert old["spec"]["runPolicy"]["schedulingPolicy"] == {"minAvailable": 32, "queue": "team"}


def test_secrets_are_named_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    job = kubernetes_job(FULL)
    text = kubernetes.render(job)
    assert "very-secret-value" not in text and text == kubernetes.render(job)
    found = {each["name"]: each for each in objects()[1]["spec"]["trainer"]["env"]}
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        assert found[name]["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": name, "optional": True}
    assert "secretKeyRef" not in kubernetes.render(kubernetes_job())


@pytest.mark.parametrize(
    ("recipe_run", "name"),
    [("20261128-182805", "gpt-13b-20261128-182805"), ("mine", "gpt-13b-mine"), ("x" * 32, "gpt-13b-" + "x" * 32)],
)
def test_a_jobs_name_is_that_of_its_run(recipe_run: str, name: str) -> None:
    assert kubeflow.name_of(kubernetes_job(run_dir=Path("/runs/gpt_13b") / recipe_run)) == name


def test_two_runs_never_share_a_name() -> None:
    runs = ["a_b", "a-b", "A-b", "ä", "x" * 33, "x" * 34, "-", "a.b"]
    names = [kubeflow.name_of(kubernetes_job(run_dir=Path("/runs/gpt_13b") / run)) for run in runs]
    assert len(set(names)) == len(runs)
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 40  # RFC 1035


WORDS: list[tuple[dict[str, Any], str]] = [
    ({"api": "mpijob"}, "did you mean|there are"),
    ({"namespace": "My_Team"}, "kubernetes.namespace is 'My_Team'; write lower-case"),
    ({"volume_claim": ""}, "kubernetes.volume_claim is ''; name a PersistentVolumeClaim"),
    ({"gpu_resource": "gpu"}, "kubernetes.gpu_resource is 'gpu'"),
    ({"gpu_resource": ""}, "such as nvidia.com/gpu"),
    ({"rdma_resource": "hca"}, "kubernetes.rdma_resource is 'hca'"),
    ({"rdma_resource": ""}, 'link is infiniband .* would see no adapter; name it, .* or set link = "ethernet"'),
    ({"secret": "My Keys"}, "name a Secret"),
    ({"queue": "a/b"}, "kubernetes.queue is 'a/b'"),
    ({"gang": "kueue"}, "kubernetes.queue is empty; name a LocalQueue"),
]
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"image": ""}, "image is ''; name one"),
    ({"image": "a b"}, "image is 'a b'"),
    ({"image": "ghcr.io/me/it"}, "give it a tag or a digest"),
    ({"image": "localhost:5000/it:latest"}, "give it a tag or a digest"),
    ({"gpus_per_node": 0}, "gpus_per_node is 0; a pod needs at least 1"),
    ({"runs": ""}, "runs is ''; name where pods mount the claim"),
    ({"run_dir": Path("/home/me/runs/gpt_13b/x")}, "above /home/me/runs/gpt_13b/x"),
    ({"time_limit": "0:01:30"}, "a save may take all of it"),
    ({"environment": {"PET_NNODES": "2"}}, "PET_NNODES, which the operator sets"),
]


@pytest.mark.parametrize(
    ("bad", "said"), WORDS, ids=[f"{name}={value}" for bad, _ in WORDS for name, value in [*bad.items()][-1:]]
)
def test_what_kubernetes_would_refuse_is_refused_before(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        kubernetes.check(kubernetes_job(replace(FULL, **bad)))
    assert str(error.value).startswith("mine.toml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(("bad", "said"), OTHERS, ids=[str(number) for number, _ in enumerate(OTHERS)])
def test_what_a_job_cannot_do_is_refused_before(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kubernetes.check(kubernetes_job(FULL, **bad))


def test_pods_without_an_adapter_can_be_meant() -> None:
    bare = replace(FULL, rdma_resource="")
    kubernetes.check(kubernetes_job(bare, link="ethernet"))
    kubernetes.check(kubernetes_job(bare, nodes=1))
    assert "IPC_LOCK" not in kubernetes.render(kubernetes_job(bare, link="ethernet"))


def test_the_page_shows_the_job_of_the_file_that_it_shows(tmp_path: Path) -> None:
    blocks = dict(re.findall(r"```(toml|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    file = tmp_path / "mine.toml"
    file.write_text(blocks["toml"])
    cluster = read(file)
    job = replace(kubernetes_job(), cluster=cluster, words=())
    kubernetes.check(job)
    assert kubernetes.render(job).split("---\n")[1] == blocks["yaml"]


def test_images_that_stay_the_same_are_taken() -> None:
    for image in ("a:1", "localhost:5000/b/c:v1.2", f"ghcr.io/d@sha256:{'0' * 64}", f"e:latest@sha256:{'1' * 64}"):
        kubernetes.check(kubernetes_job(image=image))


def test_time_limits() -> None:
    assert [seconds_of(each) for each in ("", "24:00:00", "2-01:02:03", "0:0:1")] == [0, 86400, 176523, 1]
    for bad in ("0:00:00", "1:60:00", "90", "1-2", "-1:00:00"):
        with pytest.raises(UserError, match="time_limit is"):
            seconds_of(bad)


class Cluster:
    """A kubectl that keeps jobs in a folder, for as long as a test: what it was asked, and what it is to say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.state, self.broken = folder / "calls", folder / "state", folder / "broken"
        tool = folder / "kubectl"
        tool.write_text(
            f"""#!/bin/sh
echo "$@" >> {self.calls}
case $1 in
  get) if [ -f {self.state} ]; then cat {self.state}; fi;;
  create) if [ -f {self.broken} ]; then cat {self.broken} >&2; exit 1; fi;;
esac
"""
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def is_(self, **status: object) -> None:
        self.state.write_text(json.dumps({"status": status}))

    def asked(self) -> list[str]:
        return [line.split()[0] for line in self.calls.read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def test_a_job_is_submitted_once(cluster: Cluster, tmp_path: Path) -> None:
    job, file = kubernetes_job(FULL), tmp_path / "job.yaml"
    file.write_text(kubernetes.render(job))
    assert kubernetes.submit(job, file) == "nlp/trainjob/gpt-13b-mine"
    assert cluster.asked() == ["get", "create"]
    cluster.is_(jobsStatus=[{"name": "node", "active": 1, "ready": 0}])
    with pytest.raises(UserError, match="is running already; stop it"):
        kubernetes.submit(job, file)
    cluster.is_(conditions=[{"type": "Failed", "status": "True", "message": "x"}])
    kubernetes.submit(job, file)
    assert cluster.asked() == ["get", "create", "get", "get", "delete", "create"]


def test_a_refusal_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broken.write_text('Error from server (Forbidden): trainjobs is forbidden:\n  User "me" cannot create')
    with pytest.raises(UserError, match=r'Forbidden\): trainjobs is forbidden: User "me" cannot create'):
        kubernetes.submit(kubernetes_job(), tmp_path / "job.yaml")
    assert cluster.asked() == ["get", "create", "delete"]


def test_a_job_is_given_again_where_the_trainer_had_not_heard_of_its_runtime(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "HEARD_SECONDS", 0.0)
    cluster.broken.write_text("Invalid value: specified trainingRuntime must be created before the TrainJob is created")
    assert kubernetes.submit(kubernetes_job(), tmp_path / "job.yaml") == "default/trainjob/gpt-13b-mine"
    assert cluster.asked() == ["get", "create", "apply"]


def test_status_and_stop(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not submitted to kubernetes"):
        kubernetes.status(tmp_path)
    line = {"time": 1.0, "kind": "kubernetes", "id": "nlp/trainjob/gpt-13b-mine", "cluster": "k8s"}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    seen = []
    for status in (
        {},
        {"conditions": [{"type": "Suspended", "status": "True", "message": "queued"}]},
        {"conditions": [{"type": "Suspended", "status": "False"}], "jobsStatus": [{"name": "node", "active": 1}]},
        {"conditions": [{"type": "Failed", "status": "True", "message": "exit code 3"}]},
        {"conditions": [{"type": "Complete", "status": "True", "message": "done"}]},
    ):
        cluster.is_(**status)
        seen.append(kubernetes.status(tmp_path))
    assert [each["state"] for each in seen] == ["Pending", "Suspended", "Running", "Failed", "Complete"]
    assert seen[3] == {"id": "nlp/trainjob/gpt-13b-mine", "state": "Failed", "reason": "exit code 3"}
    with pytest.raises(UserError, match="is complete: there is nothing to stop"):
        kubernetes.stop(tmp_path)
    cluster.is_()
    assert kubernetes.stop(tmp_path) == "job nlp/trainjob/gpt-13b-mine was asked to save and to end"
    last = cluster.calls.read_text().splitlines()[-1]
    assert last.startswith("delete trainjobs.trainer.kubeflow.org/gpt-13b-mine trainingruntimes.trainer.kubeflow.org/")
    assert "--namespace nlp --wait=false" in last
    cluster.state.unlink()
    with pytest.raises(UserError, match="is unknown: there is nothing to stop"):
        kubernetes.stop(tmp_path)


def test_the_log_of_kubectl_is_left_out_of_its_words(cluster: Cluster, tmp_path: Path) -> None:
    log = 'E1128 20:51:58.479599    3186 memcache.go:265] "Unhandled Error" err="connection refused"'
    cluster.broken.write_text(f"{log}\n{log}\nThe connection to the server localhost:8080 was refused\n")
    with pytest.raises(UserError, match=r"job.yaml: The connection to the server localhost:8080 was refused$"):
        kubernetes.submit(kubernetes_job(), tmp_path / "job.yaml")


def test_a_missing_kubectl_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl is not on this machine; install kubectl"):
        kubernetes.submit(kubernetes_job(), tmp_path / "job.yaml")
