"""Jobs for tests, of a recipe that nobody could start here."""

from dataclasses import replace
from pathlib import Path

from launch.clusters.description import AzureML, Cluster, Kubernetes
from launch.clusters.job import Job
from recipes.registry import load

KUBERNETES = Kubernetes(volume_claim="shared", rdma_resource="rdma/hca")


def kubernetes_job(words: Kubernetes = KUBERNETES, /, **changes: object) -> Job:
    """gpt_13b on 32 nodes of 8 GPUs; `changes` are fields of the cluster or of the job."""
    cluster = Cluster(kind="kubernetes", runs="/runs", image="ghcr.io/me/stagecraft:0.2.0", kubernetes=words)
    return _job(cluster, Path("/runs/gpt_13b/mine"), changes)


def azure_job(azure: AzureML | None = None, /, **changes: object) -> Job:
    """The same on Azure ML."""
    azure = azure or AzureML(compute="h100")
    return _job(Cluster(kind="azureml", image="ghcr.io/me/stagecraft:0.2.0", azureml=azure), Path("mine"), changes)


def _job(cluster: Cluster, run: Path, changes: dict[str, object]) -> Job:
    of_job: dict[str, object] = {"words": ("--max-steps", "100", "--set", "data.corpus=$HOME/my texts")}
    of_job |= {key: value for key, value in changes.items() if key in Job.__dataclass_fields__}
    of_cluster = {key: value for key, value in changes.items() if key not in of_job}
    job = Job(
        recipe=load("13b"),
        words=(),
        cluster=replace(cluster, **of_cluster),  # type: ignore[arg-type]
        cluster_file=Path("mine.toml"),
        nodes=32,
        gpus_per_node=8,
        run_dir=run,
        stop_seconds=30.92,
        seconds=518400.0,
    )
    return replace(job, **of_job)  # type: ignore[arg-type]
