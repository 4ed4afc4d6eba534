"""What rank 0 has to tell while a run goes. It tells the run's files: who launched or watches the run prints them."""

import sys

from run import events
from run.directory import Run
from run.feed import Feed
from run.lines import Lines
from support.json_object import JsonObject
from support.terminal import Lasting


class Display:
    """Tells what happens; silent on all ranks but the first.

    A rank that is `alone`, because another launcher started it, has no parent of ours: it prints its files itself.
    """

    def __init__(self, run: Run, enabled: bool, alone: bool) -> None:
        self.path, self.enabled, self.prints = run.path, enabled, enabled and alone
        if self.prints:
            self.feed, self.lines, self.stream = Feed(run.path), Lines(run.path), Lasting(sys.stdout)
            self.feed.new()  # what happened before

    def say(self, line: str) -> None:
        """One line that a person should see."""
        if self.enabled:
            events.note(self.path, "said", line=line)
            self._print()

    def start(self, step: int, last_step: int) -> None:
        """The loop begins after `step`."""
        if self.enabled:
            events.note(self.path, "training", step=step, last_step=last_step)
            self._print()

    def step(self, metrics: JsonObject) -> None:
        """A step that has its line among the metrics."""
        self._print()

    def finish(self) -> None:
        """The loop has ended."""
        self._print()

    def _print(self) -> None:
        if self.prints:
            for happened in self.feed.new():
                for line in self.lines.of(happened):
                    self.stream.write(line + "\n")
            self.stream.flush()
