"""A scheduler that is none: it keeps in memory what it is given."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from launch.clusters.job import Job
from support.errors import UserError
from support.json_object import JsonObject


class Fake(ModuleType):
    """Stands for the module of a kind of cluster."""

    ENDED = ("FAILED",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.jobs: list[Job] = []
        self.refuses = ""
        self.state = "PENDING"
        self.stopped: list[Path] = []

    def check(self, job: Job) -> None:
        if job.nodes > 1000:
            raise UserError("more than 1000 nodes are none of ours")

    def render(self, job: Job) -> str:
        set_here = "".join(f"{name}={value}\n" for name, value in job.cluster.environment.items())
        words = " ".join(["pretrain", job.recipe.name, *job.words, "--run-dir", str(job.run_dir)])
        return f"{set_here}{job.world_size}: {words}\n"

    def submit(self, job: Job, file: Path) -> str:
        assert file.read_text() == self.render(job)
        if self.refuses:
            raise UserError(self.refuses)
        self.jobs.append(job)
        return str(40 + len(self.jobs))

    def status(self, run: Path) -> JsonObject:
        return {"state": self.state, "why": "Priority"}

    def stop(self, run: Path) -> str:
        self.stopped.append(run)
        return "asked job 41 to save and stop"


def play(monkeypatch: pytest.MonkeyPatch, kind: str = "slurm") -> Fake:
    """Let the fake stand for a kind."""
    fake = Fake(f"launch.clusters.{kind}")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake
