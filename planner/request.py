"""What a plan is asked for, checked: the recipe on the cluster that is meant, and the answer. Imports no torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from planner.hardware import find
from planner.planning import cluster_machine, plan
from planner.ranks import check_ranks
from planner.saving import STORAGE_GB_S
from planner.timing import Machine
from planner.values import Plan
from recipes.recipe import Cluster, Recipe
from recipes.settings import override
from support.errors import UserError


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None is the recipe's, or what is usual for the GPU.

    Errors: `UserError` for values that cannot be.
    """

    gpu: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    world_size: int | None = None
    seq_length: int | None = None  # tokens
    network: float | None = None  # GB/s of a node
    price: float | None = None  # of a GPU-hour
    storage: float | None = None  # GB/s
    top: int | None = None  # layouts that a search shows

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "gpu" and value is not None and not 0 < value < float("inf"):
                least = "at least 1" if isinstance(value, int) else "above 0 and finite"
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {least}")
        if self.nodes is not None and self.world_size is not None:
            raise UserError("--nodes and --world-size are both given; give one of them")


def wanted(recipe: Recipe, request: Request) -> tuple[Recipe, int, Machine | None]:
    """The recipe as it is asked for, its number of ranks, and their hardware, nothing for CPUs.

    Errors: `UserError` for a GPU that is not known, and for what goes with a GPU where there is none.
    """
    if request.seq_length is not None:
        recipe = override(recipe, [f"model.seq_length={request.seq_length}"])
    cluster = _cluster(recipe.cluster, request)
    machine = cluster_machine(cluster, request.network)
    timed = [name for name in ("network", "price") if machine is None and getattr(request, name) is not None]
    if timed:
        raise UserError(f"--{timed[0]} needs a predicted time; {recipe.name} is planned for no GPU, give --gpu")
    return dataclasses.replace(recipe, cluster=cluster), request.world_size or cluster.world_size, machine


def _cluster(cluster: Cluster, request: Request) -> Cluster:
    if request.gpu is not None:
        gpu = find(request.gpu)
        cluster = dataclasses.replace(cluster, gpu=gpu.name, gpus_per_node=gpu.gpus_per_node)
    per_node = cluster.gpus_per_node if request.gpus_per_node is None else request.gpus_per_node
    nodes = cluster.nodes if request.nodes is None else request.nodes
    if request.world_size is not None:
        per_node = min(per_node, request.world_size)
        nodes = -(-request.world_size // per_node)
    return dataclasses.replace(cluster, nodes=nodes, gpus_per_node=per_node)


def answer(recipe: Recipe, path: Path, world: int, machine: Machine | None, request: Request) -> Plan:
    """The plan of a wanted recipe; what would fit, where its own layout does not.

    Errors: `UserError` for a cluster that the recipe's own layout and batch do not go with.
    """
    check_ranks(recipe, path, world, machine, 1 if request.world_size else recipe.cluster.gpus_per_node)
    values = plan(recipe, path, world, machine, request.storage or STORAGE_GB_S, request.price)
    if machine is not None and not values["memory"]["fits"]:
        from planner.search import remedy, smallest

        values["remedy"] = remedy(recipe, path, world, machine)
        values["smallest_cluster_nodes"] = smallest(recipe, path, machine) or None
    return values
