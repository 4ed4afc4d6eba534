"""What a run writes while it trains: a line a step in `metrics.jsonl`, what else happens in `events.jsonl`."""

from pathlib import Path
from typing import Any

import torch

from run import events
from run.directory import Run
from support import json_lines
from support.json_object import JsonObject
from training.display import Display

MANY_RANKS = 64  # from here on a line has the memory of all ranks only where it is not that of the line before


class Log:
    """The record that rank 0 keeps; the other ranks write nothing."""

    def __init__(self, run: Run, display: Display) -> None:
        self.run, self.display = run, display
        self.writes = torch.distributed.get_rank() == 0
        self._memory: list[int] = []

    def note(self, event: str, /, **facts: Any) -> None:
        """Add an event; see `run/events.py`."""
        if self.writes:
            events.note(self.run.path, event, **facts)

    def say(self, line: str) -> None:
        """One line that a person should see, now and later."""
        self.display.say(line)
        self.note("said", line=line)

    def start(self, step: int, last_step: int) -> None:
        """The steps after `step` begin."""
        self.display.start(step, last_step)
        for deviation in self.run.engine.deviations:
            self.note("said", line=f"deviates from the recipe: {deviation}")
        self.note("training", step=step, last_step=last_step)

    def passed_over(self, checkpoint: Path, reason: str) -> None:
        """A checkpoint was damaged."""
        self.display.say(f"passing over a damaged checkpoint: {reason}")
        self.note("passed_over", path=str(checkpoint), reason=reason)

    def saved(self, step: int, checkpoint: Path, seconds: float) -> None:
        """A checkpoint is whole."""
        self.display.say(f"saved {checkpoint}")
        if self.writes:
            size = sum(file.stat().st_size for file in checkpoint.iterdir())
            self.note("saved", step=step, path=str(checkpoint), seconds=seconds, bytes=size)

    def metrics(self, line: JsonObject) -> None:
        """Add a line of metrics: of a step, or of the last evaluation. It has the keys of docs/running.md."""
        if not self.writes:
            return
        memory = line.get("memory_bytes", [])
        if len(memory) > MANY_RANKS and memory == self._memory:
            line = {key: value for key, value in line.items() if key != "memory_bytes"}
        self._memory = memory
        json_lines.add(self.run.metrics, line)
        if "loss" in line:
            self.display.step(line)
