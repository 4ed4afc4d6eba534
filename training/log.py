"""What a run writes while it trains: a line a step in `metrics.jsonl`, what else happens in `events.jsonl`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from run import events
from run.directory import Run
from run.metrics import each, truncate_metrics
from support import json_lines
from support.errors import StoppedError
from support.json_object import JsonObject
from training import monitors
from training.display import Display

MANY_RANKS = 64  # from here on a line has the memory of all ranks only where it is not that of the line before


class Log:
    """The record that rank 0 keeps; the other ranks write nothing. `display` prints it, where nobody else does.

    Leaving the context ends the monitors' curves.
    """

    def __init__(self, run: Run, display: Display | None) -> None:
        self.run, self.display = run, display
        self.writes = torch.distributed.get_rank() == 0
        self._monitors: list[monitors.Monitor] = []
        self._begin = 0
        self._memory: list[int] = []

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        failed = kind not in (None, StoppedError)
        self._each_monitor(lambda monitor: monitor.close(failed))

    def note(self, event: str, /, **facts: Any) -> None:
        """Add an event; see `run/events.py`."""
        if self.writes:
            events.note(self.run.path, event, **facts)
        if self.display:
            self.display.show()

    def say(self, line: str) -> None:
        """One line that a person should see, now and later."""
        self.note("said", line=line)

    def start(self, step: int, last_step: int) -> None:
        """The steps after `step` begin: those that were taken before are forgotten."""
        reached = 0
        if self.writes:
            before = [event["reached"] for event in events.read(self.run.path) if "reached" in event]
            reached = max([0, *before, *(line["step"] for line in each(self.run.metrics))])
            truncate_metrics(self.run.metrics, step)
            self._monitors = monitors.opened(self.run, step, reached, self.say)
        self._begin = step
        self.note("training", step=step, last_step=last_step, reached=reached)

    def passed_over(self, checkpoint: Path, reason: str) -> None:
        """A checkpoint was damaged."""
        self.note("passed_over", path=str(checkpoint), reason=reason)

    def saved(self, step: int, checkpoint: Path, seconds: float, waited: float) -> None:
        """A checkpoint is whole, `seconds` after it was begun; training waited for it so long."""
        if self.writes:
            size = sum(file.stat().st_size for file in checkpoint.iterdir())
            self.note("saved", step=step, path=str(checkpoint), seconds=seconds, waited=waited, bytes=size)

    def metrics(self, line: JsonObject) -> None:
        """Add a line of metrics: of a step, or of the last evaluation. It has the keys of docs/running.md."""
        if not self.writes:
            return
        memory = line.get("memory_bytes", [])
        if len(memory) > MANY_RANKS and memory == self._memory:
            line = {key: value for key, value in line.items() if key != "memory_bytes"}
        self._memory = memory
        json_lines.add(self.run.metrics, line)
        if self.display:
            self.display.show()
        if line["step"] > self._begin:  # else nothing was trained, and the curves have their end already
            numbers = monitors.numbers(line)
            self._each_monitor(lambda monitor: monitor.write(line["step"], numbers))

    def _each_monitor(self, does: Callable[[monitors.Monitor], None]) -> None:
        """Let each monitor do something. The run is worth more than a curve of it: one that fails is done with."""
        for monitor in list(self._monitors):
            try:
                does(monitor)
            except Exception as error:
                self._monitors.remove(monitor)
                self.say(f"{type(monitor).__name__} gets no more of this run: {error}")
