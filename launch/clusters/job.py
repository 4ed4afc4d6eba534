"""What a scheduler is asked to run: a recipe on the nodes of a cluster."""

from dataclasses import dataclass
from pathlib import Path

from launch.clusters.description import Cluster
from planner.saving import STOP_SECONDS
from recipes.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A start of a recipe on a cluster.

    `words` are the flags that `stagecraft pretrain RECIPE` gets there, without those that say where (`--cluster`,
    `--nodes`, `--run-dir`, `--resume`). `stop_seconds` is what ranks have to save and to end when they are asked to,
    `seconds` the whole run, both by the planner; of the whole run 0 where it does not know.
    """

    recipe: Recipe
    words: tuple[str, ...]
    cluster: Cluster
    cluster_file: Path
    nodes: int
    gpus_per_node: int
    run_dir: Path
    stop_seconds: float = STOP_SECONDS
    seconds: float = 0.0

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.gpus_per_node
