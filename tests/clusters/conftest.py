"""One Slurm for all tests of it, and runs of `gpt_tiny` made small that are submitted to it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from launch.clusters import slurm
from launch.clusters.description import Cluster, Slurm
from launch.clusters.job import Job
from recipes.registry import load
from run import events
from run.metrics import read_steps, reproducible
from support import json_lines
from tests.clusters.own_slurm import OwnSlurm, missing
from tests.commands.running import small, write_corpus

WAIT_SECONDS = 300.0
# A shell starts what it puts into the background deaf to this signal, and commands under test would be deaf too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def own_slurm() -> Iterator[OwnSlurm]:
    if why := missing():
        pytest.skip(f"no Slurm can be made here: {why}")
    with TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)  # munge refuses a socket in a folder that others cannot enter
        made = OwnSlurm(Path(home))
        try:
            try:
                made.start()
            except AssertionError as error:  # a container may forbid what a daemon needs, and it says so
                pytest.skip(f"no Slurm could be started here: {error}")
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs share one corpus and its prepared data."""
    path = tmp_path_factory.mktemp("home")
    write_corpus(path / "corpus.jsonl")
    return path


def settings(home: Path, steps: int) -> list[str]:
    """The flags of a run of so many steps."""
    every = ("intervals.evaluate_every=1000", "intervals.save_every=10")
    return [*small(home / "corpus.jsonl"), f"schedule.train_tokens={steps * 256}", *every]


class Submitted:
    """A run that was submitted, with a job of two nodes of a rank each by default."""

    def __init__(
        self, own: OwnSlurm, home: Path, name: str, steps: int, nodes: int = 2, ranks: int = 1, **cluster: Any
    ) -> None:
        self.own, self.path = own, home / name
        words = tuple(settings(home, steps))
        described = Cluster(**{"kind": "slurm", "slurm": Slurm(partition="main", gpus=False), **cluster})
        self.job = Job(load("tiny"), words, described, home / "mine.toml", nodes, ranks, self.path)
        self.id = ""

    def submit(self) -> "Submitted":
        """As `pretrain --cluster` does."""
        self.path.mkdir(exist_ok=True)
        file = self.path / "job.sh"
        file.write_text(slurm.render(self.job))
        self.id = slurm.submit(self.job, file)
        noted = {"time": time.time(), "kind": "slurm", "id": self.id, "cluster": "mine.toml"}
        json_lines.add(self.path / "jobs.jsonl", noted)
        return self

    @property
    def step(self) -> int:
        """The last step that was taken."""
        steps = read_steps(self.path / "metrics.jsonl") if (self.path / "metrics.jsonl").exists() else []
        return int(steps[-1]["step"]) if steps else 0

    @property
    def losses(self) -> list[dict[str, Any]]:
        """The steps without the figures that are no function of the run."""
        return reproducible(read_steps(self.path / "metrics.jsonl"))

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its events of a kind."""
        return [line for line in events.read(self.path) if line["event"] == event]

    @property
    def state(self) -> str:
        """What Slurm calls it."""
        return str(slurm.status(self.path)["state"])

    @property
    def printed(self) -> str:
        """What the job has printed so far."""
        file = self.path / f"slurm-{self.id}.out"
        return file.read_text() if file.exists() else f"{file} is not there; {self.state}"

    def wait(self, holds: Callable[[], object], what: str) -> "Submitted":
        """Wait for something."""
        until = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert time.monotonic() < until, f"{what} did not come: {self.state}\n{self.printed}"
            time.sleep(0.1)
        return self

    def at_step(self, step: int) -> "Submitted":
        return self.wait(lambda: self.step >= step, f"step {step}")

    def at_end(self, state: str = "COMPLETED") -> "Submitted":
        """Wait until it is over."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state in over, "the end")
        assert self.state == state, self.printed
        return self


Submit = Callable[..., Submitted]


@pytest.fixture
def submit(own_slurm: OwnSlurm, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submit]:
    """Submit a run by a name, for so many steps."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(home / "runs"))
    for name, value in own_slurm.environment.items():
        monkeypatch.setenv(name, value)
    made: list[Submitted] = []

    def give(name: str, steps: int = 20, **more: Any) -> Submitted:
        made.append(Submitted(own_slurm, home, name, steps, **more))
        return made[-1]

    yield give
    for each in made:
        if each.id and each.state in ("PENDING", "RUNNING"):
            own_slurm.said("scancel", each.id)
            each.wait(lambda each=each: each.state not in ("PENDING", "RUNNING", "COMPLETING"), "the end")  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job gets the environment of who submits it."""
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_"))]:
        monkeypatch.delenv(name)
