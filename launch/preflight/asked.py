"""What a preflight is asked for, and what it found as `--json` shows it. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from launch.preflight.speeds import Speed
from planner.finding import Check, State
from recipes.recipe import Recipe
from run.directory import Run, runs_root, was_trained
from run.request import Request, plan_run


@dataclass(frozen=True)
class Limits:
    """Seconds: until all ranks are there, that a stage may take, and all of it."""

    meet: float = 60.0
    answer: float = 20.0
    total: float = 150.0


@dataclass(frozen=True)
class Asked:
    """The run that is meant, and the cluster: a GPU of the catalogue (empty: any), so many a node (0: as ranks)."""

    recipe: Recipe
    deepspeed_config: str | None = None
    settings: tuple[str, ...] = ()
    run_dir: str | None = None
    gpu: str = ""
    gpus_per_node: int = 0

    @property
    def folder(self) -> Path:
        """Where the run will live, or all runs."""
        return Path(self.run_dir) if self.run_dir else runs_root()

    def run(self, world: int) -> Run:
        """The run, checked for so many ranks. Errors: `UserError` for what is wrong with it."""
        goes_on = self.run_dir is not None and was_trained(Path(self.run_dir))
        request = Request(self.deepspeed_config, self.settings, run_dir=self.run_dir, resume=goes_on)
        return plan_run(self.recipe, request, world)


class FoundLine(TypedDict):
    """A finding."""

    line: str
    spoils: bool


class CheckValues(TypedDict):
    """A check."""

    name: str
    state: State
    seen: str
    findings: list[FoundLine]


class Values(TypedDict):
    """What a preflight found."""

    recipe: str
    run_dir: str
    world_size: int
    hosts: int
    seconds: float
    ok: bool
    checks: list[CheckValues]
    speeds: list[Speed]
    absent: list[int]


def shown(checks: Sequence[Check]) -> list[CheckValues]:
    """The checks as `--json` shows them."""
    return [
        {
            "name": check.name,
            "state": check.state,
            "seen": check.seen,
            "findings": [{"line": each.line, "spoils": each.spoils} for each in check.findings],
        }
        for check in checks
    ]
