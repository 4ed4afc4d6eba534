"""What rank 0 prints where another launcher started it: then no parent of ours prints the run's files."""

import sys
from pathlib import Path

from run.feed import Feed
from run.lines import Lines
from support.terminal import lasting


class Display:
    """Plain lines of what the run in `path` notes from now on."""

    def __init__(self, path: Path) -> None:
        self.feed, self.lines, self.stream = Feed(path), Lines(path), lasting(sys.stdout)
        self.feed.new()  # what happened before
        self.shows = False

    def show(self) -> None:
        """Print what is new. A signal that comes meanwhile is told the next time."""
        if self.shows:
            return
        self.shows = True
        for happened in self.feed.new():
            for line in self.lines.of(happened):
                self.stream.write(line + "\n")
        self.stream.flush()
        self.shows = False
