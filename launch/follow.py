"""Show a run while it goes: a panel on a terminal, plain lines elsewhere. Both come from the run's files alone."""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

from run.feed import Feed
from run.lines import Lines
from run.state import State, began_at
from support.terminal import draws, lasting

POLL_SECONDS = 0.25
STILL_SECONDS = 1.0  # between two drawings while nothing happens
PLAIN_COLUMNS = 100  # of the panel where it is no terminal
MOST_SECONDS = 2.0  # between two looks
SHARE = 0.005  # of a processor that drawing may take


class View(Protocol):
    """Where a run is shown."""

    def draw(self, lines: list[str]) -> None:
        """Show these lines, and the state as it is now where that has a place."""

    def close(self, keep: bool) -> None:
        """End; with `keep` the state stays there."""


class Plain:
    """Lines, one below the other."""

    def __init__(self, stream: TextIO, state: State) -> None:
        self.stream, self.state = stream, state

    def draw(self, lines: list[str]) -> None:
        if lines:
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()

    def close(self, keep: bool) -> None:
        if keep:
            from rich.console import Console

            from run.panel import RunPanel

            Console(file=self.stream, width=PLAIN_COLUMNS).print(RunPanel(self.state))
            self.stream.flush()


def view(stream: TextIO, state: State) -> View:
    """Standard output as it can be used: drawn over where it is a terminal."""
    if not draws(stream):
        return Plain(stream, state)
    from launch.drawn import Drawn  # imports rich

    return Drawn(stream, state)


class Screen:
    """What a person sees of a run. `history` leaves out what happened before: the panel knows it, no line tells it."""

    def __init__(self, path: Path, began: float, ranks_say: BinaryIO | None = None) -> None:
        stream = lasting(sys.stdout)
        self.feed, self.state, self.ranks_say = Feed(path), State(path, began), ranks_say
        self.lines = Lines(path, steps=not draws(stream))
        self.view = view(stream, self.state)
        self.drawn_at = -STILL_SECONDS

    def history(self, lines: bool = False) -> None:
        """Take what is there already; with `lines` also as the beginning of what is said from now on."""
        for happened in self.feed.new():
            self.state.take(happened)
            if lines:
                self.lines.of(happened)

    def refresh(self) -> float:
        """Show what is new, and return the seconds until it is worth to look again."""
        began, used = time.monotonic(), time.thread_time()
        ranks_said, news, said = self._ranks_said(), self.feed.new(), list[str]()
        for happened in news:
            self.state.take(happened)
            said += self.lines.of(happened)
        said += ranks_said  # what they wrote before it was read after it
        if news or said or began - self.drawn_at >= STILL_SECONDS:
            self.view.draw(said)
            self.drawn_at = began
        return min(max(POLL_SECONDS, (time.thread_time() - used) / SHARE), MOST_SECONDS)

    def _ranks_said(self) -> list[str]:
        """Whole lines that the ranks printed since the last call: warnings, and what went wrong."""
        lines = []
        while self.ranks_say and (line := self.ranks_say.readline()):
            if not line.endswith(b"\n"):
                self.ranks_say.seek(-len(line), os.SEEK_CUR)
                break
            lines.append(line.decode(errors="replace").rstrip().rsplit("\r", 1)[-1])
        return lines

    def close(self, keep: bool) -> None:
        """Show the rest, and leave the panel there or not."""
        self.drawn_at = -STILL_SECONDS
        self.refresh()
        self.view.close(keep)
        self.feed.close()


@contextmanager
def following(path: Path, began: float) -> Iterator[int | None]:
    """Show a run that this process starts, since `began` (seconds since 1970), in a thread until the block ends.

    Yields the descriptor that the ranks are to print to, None for those of this process: what they print into a panel
    would break it up, so it is shown above. What cannot be printed any more is lost, and the run goes on.
    """
    with tempfile.NamedTemporaryFile("ab") as written, open(written.name, "rb") as ranks_say:
        drawn = draws(sys.stdout) and sys.stderr.isatty()
        screen = Screen(path, began, ranks_say if drawn else None)
        screen.history()
        screen.state.take({"event": "start", "time": began})  # the run's files say so when all was checked
        ended = threading.Event()

        def show() -> None:
            while not ended.wait(screen.refresh()):
                pass

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield written.fileno() if drawn else None
        finally:
            ended.set()
            thread.join()
            screen.close(keep=False)


def watch(path: Path) -> None:
    """Show a run that somebody else starts or started, until it is over. Ctrl-C leaves it alone."""
    screen = Screen(path, began_at(path))
    screen.history(lines=True)
    try:
        pause = screen.refresh()
        while not screen.state.over:
            time.sleep(pause)
            pause = screen.refresh()
    except KeyboardInterrupt:
        pass
    screen.close(keep=True)
