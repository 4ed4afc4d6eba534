"""What a scheduler is asked to run: a recipe on the nodes of a cluster."""

from dataclasses import dataclass
from pathlib import Path

from launch.clusters.description import Cluster
from recipes.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A start of a recipe on a cluster.

    `words` are the flags that `stagecraft pretrain RECIPE` gets there, without those that say where (`--cluster`,
    `--nodes`, `--run-dir`, `--resume`). `save_seconds` is what a save on request takes, `seconds` the whole run, both
    by the planner; 0 where it does not know.
    """

    recipe: Recipe
    words: tuple[str, ...]
    cluster: Cluster
    cluster_file: Path
    nodes: int
    gpus_per_node: int
    run_dir: Path
    save_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.gpus_per_node
