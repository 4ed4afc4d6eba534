"""Runs that are hurt from outside, and what is left of their processes."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

from run import events, members
from run.metrics import read_steps
from tests.commands.running import Command, small
from tests.patience import ended, wait_until

STEPS = 60


class Hurt:
    """A run in `home/name` that was started, with the processes that belong to it."""

    def __init__(
        self,
        home: Path,
        name: str,
        *flags: str,
        settings: tuple[str, ...] = (),
        resume: bool = False,
        module: tuple[str, ...] = ("recipes.gpt_tiny",),
    ) -> None:
        self.path = home / name
        tokens = (f"schedule.train_tokens={STEPS * 256}", "intervals.evaluate_every=1000", *settings)
        given = ["--resume"] if resume else [*small(home / "corpus.jsonl"), *tokens]
        self.command = Command(home, *module, *given, "--run-dir", str(self.path), *flags)
        self.pids: set[int] = set()

    def at_step(self, step: int) -> "Hurt":
        """Wait until so many steps are taken."""
        self.command.wait_until(lambda: self.step >= step)
        return self.seen()

    def seen(self) -> "Hurt":
        """Note the processes that it has now."""
        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(self.command.pid)
            self.pids |= {command.pid, *(each.pid for each in command.children(recursive=True))}
        return self

    @property
    def step(self) -> int:
        """The last step that was taken."""
        steps = read_steps(self.path / "metrics.jsonl") if (self.path / "metrics.jsonl").exists() else []
        return int(steps[-1]["step"]) if steps else 0

    def launcher(self, inner: bool) -> int:
        """The launcher's outer process, or the inner one, whose children the ranks are."""
        process = psutil.Process(self.rank(0)).parent()
        assert process
        return process.pid if inner else process.ppid()

    def rank(self, number: int) -> int:
        """The process of a rank."""
        found = members.read(self.path, str(number))
        assert found
        return found.pid

    def send(self, number: int, *pids: int) -> float:
        """Send a signal; returns when."""
        for pid in pids:
            os.kill(pid, number)
        return monotonic()

    def gone(self, since: float) -> float:
        """Wait until no process of it is left; returns the seconds that this took."""
        wait_until(lambda: all(map(ended, self.pids)), *self.pids, what="processes are left")
        return monotonic() - since

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its events of a kind."""
        return [line for line in events.read(self.path) if line["event"] == event]

    def finish(self) -> tuple[int, str]:
        """Wait for its end; returns status and standard error."""
        done = self.command.finish()
        return done.returncode, done.stderr

    def kill(self) -> None:
        """End all of it."""
        for pid in self.seen().pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
