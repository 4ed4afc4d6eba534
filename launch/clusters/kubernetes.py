"""Kubernetes with Kubeflow's trainer: the YAML of a job, and what `kubectl` does with it.

A job's id is `namespace/api/name`, such as `default/trainjob/gpt-13b-mine`.
"""

import json
import re
import time
from pathlib import Path

from launch.clusters import kubeflow, pod
from launch.clusters.job import Job
from launch.clusters.time_limit import seconds_of
from launch.clusters.tool import check_goes_on, job_of, read_answer, said
from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

INSTALL = "install kubectl, and have it know the cluster (kubectl config current-context)"
KINDS = {"trainjob": "trainjobs.trainer.kubeflow.org", "pytorchjob": "pytorchjobs.kubeflow.org"}
RUNTIMES = "trainingruntimes.trainer.kubeflow.org"
TOO_SOON, HEARD_SECONDS = "trainingRuntime must be created before", 2.0  # how Trainer 2.3 refuses a job then
UNKNOWN = "Unknown"
ENDED = ("Failed", "Complete", "Succeeded", UNKNOWN)
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
RESOURCE = re.compile(r"[a-z0-9][-a-z0-9.]*/[A-Za-z0-9][-A-Za-z0-9_.]*")
IMAGE = re.compile(r"[^\s:@]+(:\d+/[^\s:@]+)?(:[\w][\w.-]*)?(@sha256:[0-9a-f]{64})?")
OPERATORS = re.compile(r"PET_\w+|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT")


def check(job: Job) -> None:
    """Refuse what Kubernetes would refuse, or what cannot work. Errors: `UserError` that names key and remedy."""
    words, file = job.cluster.kubernetes, job.cluster_file
    if words.api not in KINDS:
        raise UserError(f"{file}: there is no kubernetes.api {words.api!r}; {hint(words.api, KINDS)}")
    for key, pattern, value in (
        ("namespace", LABEL, words.namespace),
        ("volume_claim", NAME, words.volume_claim),
        ("gpu_resource", RESOURCE, words.gpu_resource),
        ("rdma_resource", RESOURCE, words.rdma_resource or "a/b"),
        ("secret", NAME, words.secret or "a"),
        ("queue", LABEL, words.queue or "a"),
    ):
        if not pattern.fullmatch(value):
            raise UserError(f"{file}: kubernetes.{key} is {value!r}; {REMEDIES[key]}")
    if words.gang == "kueue" and not words.queue:
        raise UserError(f"{file}: kubernetes.gang is kueue and kubernetes.queue is empty; name a LocalQueue")
    if job.gpus_per_node < 1:
        raise UserError(f"{file}: gpus_per_node is {job.gpus_per_node}; a pod needs at least 1")
    if job.nodes > 1 and job.cluster.link != "ethernet" and not words.rdma_resource:
        raise UserError(
            f"{file}: link is {job.cluster.link} and kubernetes.rdma_resource is empty, so pods would see no adapter; "
            'name it, as kubectl describe node shows it, or set link = "ethernet"'
        )
    _check_image(job)
    _check_environment(job)
    runs = job.cluster.runs
    if not runs.startswith("/") or not job.run_dir.is_relative_to(runs):
        raise UserError(f"{file}: runs is {runs!r}; name where pods mount the claim, above {job.run_dir}")
    limit = seconds_of(job.cluster.time_limit)
    if 0 < limit <= pod.stop_seconds(job):
        raise UserError(f"{file}: time_limit is {job.cluster.time_limit}, and a save may take all of it; raise it")


REMEDIES = {
    "namespace": "write lower-case letters, digits and dashes",
    "volume_claim": "name a PersistentVolumeClaim that all nodes can write to (ReadWriteMany)",
    "gpu_resource": "write it as kubectl describe node shows it, such as nvidia.com/gpu",
    "rdma_resource": "write it as kubectl describe node shows it, such as rdma/hca_shared_devices_a",
    "secret": "name a Secret: lower-case letters, digits, dashes and dots",
    "queue": "name a queue: lower-case letters, digits and dashes",
}


def _check_image(job: Job) -> None:
    """Nodes must not run different programs. Errors: `UserError` where an image is none, or may change."""
    image, found = job.cluster.image, IMAGE.fullmatch(job.cluster.image)
    if not found:
        raise UserError(f"{job.cluster_file}: image is {image!r}; name one, as launch/clusters/Containerfile builds it")
    if not found[3] and found[2] in (None, ":latest"):
        raise UserError(f"{job.cluster_file}: image {image} may be another one tomorrow; give it a tag or a digest")


def _check_environment(job: Job) -> None:
    """Errors: `UserError` for a variable that the operator sets."""
    for name in job.cluster.environment:
        if OPERATORS.fullmatch(name):
            raise UserError(f"{job.cluster_file}: environment has {name}, which the operator sets; take it out")


def render(job: Job) -> str:
    """The YAML for `kubectl create`: for a TrainJob also the runtime that says what it cannot say itself."""
    import yaml

    objects = {"trainjob": kubeflow.train_job, "pytorchjob": kubeflow.pytorch_job}[job.cluster.kubernetes.api](job)
    head = f"# {job.recipe.name} on {job.nodes} nodes of {job.gpus_per_node} GPUs: kubectl create -f THIS\n"
    plain = json.loads(json.dumps(objects))  # what stands in two places is written twice
    return head + "---\n".join(yaml.safe_dump(each, sort_keys=False, width=1000, allow_unicode=True) for each in plain)


def submit(job: Job, file: Path) -> str:
    """Hand the rendered file to the cluster, in place of an earlier job of the run that has ended; returns the id.

    Errors: `UserError` with kubectl's words, or where the run's job goes on; nothing is left on the cluster then.
    """
    words = job.cluster.kubernetes
    made = f"{words.namespace}/{words.api}/{kubeflow.name_of(job)}"
    state = _look(made)["state"]
    if state not in ENDED:
        raise UserError(f"{made} is {state.lower()} already; stop it, or give another --name")
    delete = ["kubectl", "delete", "-f", str(file), "--ignore-not-found"]
    if state != UNKNOWN:
        said(delete, INSTALL)
    try:
        _create(file)
    except UserError:
        said(delete, INSTALL)  # the runtime may be there, and the job not
        raise
    return made


def _create(file: Path) -> None:
    """Create what a file has. The trainer may hear of the runtime after it is asked about the job; then once more."""
    try:
        said(["kubectl", "create", "-f", str(file)], INSTALL)
    except UserError as error:
        if TOO_SOON not in str(error):
            raise
        time.sleep(HEARD_SECONDS)
        said(["kubectl", "apply", "-f", str(file)], INSTALL)


def status(run: Path) -> JsonObject:
    """What Kubernetes says of the last job of a run: `id`, `state`, `reason`.

    Errors: `UserError` where it was not submitted, or the cluster is silent.
    """
    return _look(job_of(run, "kubernetes"))


def stop(run: Path) -> str:
    """Have the last job of a run save and end: its pods get SIGTERM and the time that a save takes.

    Errors: `UserError` where there is nothing to stop.
    """
    now = status(run)
    check_goes_on(run, now, ENDED)
    namespace, api, name = now["id"].split("/")
    parts = [f"{KINDS[api]}/{name}", *([f"{RUNTIMES}/{name}"] if api == "trainjob" else [])]
    said(["kubectl", "delete", *parts, "--namespace", namespace, "--wait=false"], INSTALL)
    return f"job {now['id']} was asked to save and to end"


def _look(made: str) -> JsonObject:
    """The state of a job by its id, in the operator's word."""
    namespace, api, name = made.split("/")
    command = ["kubectl", "get", f"{KINDS[api]}/{name}", "--namespace", namespace, "--ignore-not-found", "-o", "json"]
    text = said(command, INSTALL).strip()
    if not text:
        return {"id": made, "state": UNKNOWN, "reason": "the cluster has no such job"}
    seen = read_answer(command, text).get("status", {})
    true = {each["type"]: each for each in seen.get("conditions", []) if each["status"] == "True"}
    found: JsonObject = next(
        (true[state] for state in (*ENDED, "Suspended", "Restarting", "Running") if state in true), {}
    )
    active = any(each.get("active") or each.get("ready") for each in seen.get("jobsStatus", []))
    state = found.get("type", "Running" if active else "Pending")
    return {"id": made, "state": state, "reason": found.get("message", "")}
