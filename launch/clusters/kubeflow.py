"""A job as Kubeflow's operators take it.

A TrainJob is Kubeflow Trainer's (v2, trainer.kubeflow.org/v1alpha1), a PyTorchJob the training operator's (v1). Both
start one process a node and tell it by `PET_*` who it is; `launch/clusters/node.py` starts the ranks and ends as they
do.
"""

import hashlib
import math
import re

from launch.clusters import pod
from launch.clusters.job import Job
from launch.clusters.node import FOR_GOOD
from launch.clusters.time_limit import seconds_of
from planner.saving import FAILURE_HOURS
from support.errors import STOPPED
from support.json_object import JsonObject

LONGEST = 40  # of a job's name: the names of its pods add up to 23 letters, and none may have more than 63
TRIES = 10  # after a crash, and twice as many as crashes are planned for


def name_of(job: Job) -> str:
    """The job's name on the cluster: recipe and run in letters that RFC 1035 allows, at most `LONGEST`.

    What is shortened or spelled otherwise ends with a digest, so that two runs do not get one name.
    """
    full = f"{job.recipe.name}-{job.run_dir.name}"
    plain = re.sub(r"[^a-z0-9]+", "-", full.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}"
    if len(plain) <= LONGEST and re.fullmatch(r"[a-z0-9-]+", job.run_dir.name):
        return plain
    return f"{plain[: LONGEST - 7].rstrip('-')}-{hashlib.sha256(full.encode()).hexdigest()[:6]}"


def _metadata(job: Job) -> JsonObject:
    words = job.cluster.kubernetes
    labels = {"app.kubernetes.io/name": "stagecraft", "app.kubernetes.io/component": job.recipe.name}
    if words.queue and words.gang != "volcano":
        labels["kueue.x-k8s.io/queue-name"] = words.queue
    return {"name": name_of(job), "namespace": words.namespace, "labels": labels}


def tries(job: Job) -> int:
    """How often a job is begun anew after a crash: some, and twice as many as its GPUs are planned to fail."""
    return TRIES + math.ceil(2 * job.seconds / 3600 * job.world_size / FAILURE_HOURS)


def train_job(job: Job) -> list[JsonObject]:
    """A runtime and a TrainJob that names it."""
    words, metadata = job.cluster.kubernetes, _metadata(job)
    policy: JsonObject = {"mlPolicy": {"numNodes": job.nodes, "torch": {}}}
    if words.gang == "volcano":
        policy["podGroupPolicy"] = {"volcano": {}}
    queue = {"scheduling.volcano.sh/queue-name": words.queue} if words.gang == "volcano" and words.queue else {}
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {**_named(metadata), "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            **policy,
            "template": {**({"metadata": {"annotations": queue}} if queue else {}), "spec": _job_set(job)},
        },
    }
    limit = seconds_of(job.cluster.time_limit)
    spec = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": metadata["name"]},
        **({"activeDeadlineSeconds": limit} if limit else {}),
        "trainer": {
            "image": job.cluster.image,
            "command": pod.command(job),
            "numNodes": job.nodes,
            "numProcPerNode": job.gpus_per_node,
            "resourcesPerNode": pod.resources(job),
            "env": pod.environment(job),
        },
    }
    job_itself = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}
    return [runtime, job_itself]


def _named(metadata: JsonObject) -> JsonObject:
    return {key: metadata[key] for key in ("name", "namespace")}


def _job_set(job: Job) -> JsonObject:
    """The JobSet below a TrainJob. All pods begin anew together: ranks of before cannot meet one that is new.

    A pod that ends with what no try can mend ends the job. A pod that saved and stopped, or that lost its node, does
    not count as a crash. JobSet sees only the message of the Job's controller, so the message says which it was.
    """
    for_good = f"failed with exit code ({'|'.join(map(str, FOR_GOOD))}) "
    ours = {"onJobFailureReasons": ["PodFailurePolicy"]}
    rules = [
        {"name": "ForGood", "action": "FailJobSet", **ours, "onJobFailureMessagePatterns": [for_good]},
        {"name": "StoppedOrMoved", "action": "RestartJobSetAndIgnoreMaxRestarts", **ours},
    ]
    statuses = {"containerName": "node", "operator": "In", "values": sorted([*FOR_GOOD, STOPPED])}
    pods = {
        "rules": [
            {"action": "FailJob", "onExitCodes": statuses},
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "podFailurePolicy": pods,
                "template": {"spec": pod.template(job, {"name": "node"})},
            },
        },
    }
    return {"failurePolicy": {"maxRestarts": tries(job), "rules": rules}, "replicatedJobs": [node]}


def pytorch_job(job: Job) -> list[JsonObject]:
    """A PyTorchJob: its first pod is the master, the others are workers."""
    words, limit = job.cluster.kubernetes, seconds_of(job.cluster.time_limit)
    container = {
        "name": "pytorch",
        "command": pod.command(job, again=pod.USER_RETRY),
        "env": pod.environment(job),
        "resources": pod.resources(job),
    }
    spec = {key: value for key, value in pod.template(job, container).items() if key != "restartPolicy"}
    one = {"restartPolicy": "ExitCode", "template": {"spec": spec}}
    replicas = {"Master": {"replicas": 1, **one}}
    if job.nodes > 1:
        replicas["Worker"] = {"replicas": job.nodes - 1, **one}
    policy: JsonObject = {"cleanPodPolicy": "Running", "backoffLimit": tries(job)}
    if limit:
        policy["activeDeadlineSeconds"] = limit
    if words.gang == "volcano":
        policy["schedulingPolicy"] = {"minAvailable": job.nodes, **({"queue": words.queue} if words.queue else {})}
    whole = {"nprocPerNode": str(job.gpus_per_node), "runPolicy": policy, "pytorchReplicaSpecs": replicas}
    return [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _metadata(job), "spec": whole}]
