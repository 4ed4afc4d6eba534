"""The pod that is one node of a job on Kubernetes: what runs in it, what it gets, how long it may take to end."""

import math
from pathlib import PurePosixPath

from launch.clusters.job import Job
from support.json_object import JsonObject

STEP_SECONDS, END_SECONDS = 60, 30  # for the step in hand; for the container to end after its ranks
USER_RETRY = 138  # Kubeflow's PyTorchJob restarts a pod for 128 and more, and for nothing below


def stop_seconds(job: Job) -> int:
    """Seconds that ranks have between SIGTERM and their end: the step in hand, and the save."""
    return STEP_SECONDS + math.ceil(job.stop_seconds)


def command(job: Job, again: int | None = None) -> list[str]:
    """What each pod runs: the ranks of a node. `again` is the status that asks for another try, where it is not ours.

    Kubernetes puts a variable in for `$(NAME)` and makes one dollar of two, so each dollar stands twice.
    """
    how = ["--run-dir", str(job.run_dir), "--stop-seconds", str(stop_seconds(job))]
    how += [] if again is None else ["--again", str(again)]
    words = ["python", "-m", "launch.clusters.node", *how, f"recipes.{job.recipe.name}", *job.words]
    if job.cluster.setup:
        words = ["bash", "-c", "\n".join(["set -e", *job.cluster.setup, 'exec "$@"']), "bash", *words]
    return [word.replace("$", "$$") for word in words]


def environment(job: Job) -> list[JsonObject]:
    """The variables of a pod. A secret is named, never written."""
    runs = job.cluster.runs
    plain = {"STAGECRAFT_RUNS": runs, "STAGECRAFT_CACHE": str(PurePosixPath(runs) / "cache"), **job.cluster.environment}
    result: list[JsonObject] = [{"name": name, "value": text.replace("$", "$$")} for name, text in plain.items()]
    for name in job.cluster.secrets if job.cluster.kubernetes.secret else ():
        where = {"name": job.cluster.kubernetes.secret, "key": name, "optional": True}
        result.append({"name": name, "valueFrom": {"secretKeyRef": where}})
    return result


def resources(job: Job) -> JsonObject:
    """GPUs and adapters of a pod. Kubernetes wants requests of these to be equal to the limits."""
    words = job.cluster.kubernetes
    asked = {words.gpu_resource: str(job.gpus_per_node)}
    if words.rdma_resource:
        asked[words.rdma_resource] = str(words.rdma_count)
    return {"requests": dict(asked), "limits": asked}


def template(job: Job, container: JsonObject) -> JsonObject:
    """The spec of a pod around a container, which gets image, volumes and rights here."""
    words = job.cluster.kubernetes
    rights: JsonObject = {"allowPrivilegeEscalation": False}
    if words.rdma_resource:
        rights["capabilities"] = {"add": ["IPC_LOCK"]}  # an adapter reads memory that must not be swapped out
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}, {"name": "runs", "mountPath": job.cluster.runs}]
    spec: JsonObject = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": stop_seconds(job) + END_SECONDS,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [{"key": words.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [
            {
                "image": job.cluster.image,
                "imagePullPolicy": "IfNotPresent",
                **container,
                "securityContext": rights,
                "volumeMounts": mounts,
            }
        ],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": words.shared_memory}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": words.volume_claim}},
        ],
    }
    if words.gang == "volcano":
        spec["schedulerName"] = "volcano"
    return spec
