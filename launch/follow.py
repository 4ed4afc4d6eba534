"""Show a run while it goes: a panel on a terminal, plain lines elsewhere. Both come from the run's files alone."""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from run import rank_logs
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

    def complain(self, lines: list[str]) -> None:
        """Show what rank 0 printed by itself."""

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

    def complain(self, lines: list[str]) -> None:
        if lines:
            print(*lines, sep="\n", file=sys.stderr, flush=True)

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


class Printed:
    """The whole lines that a process prints into a file, from now on; the file need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, path.stat().st_size if path.exists() else 0

    def new(self) -> list[str]:
        """The lines since the last call."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.read)
                whole = stream.read().rpartition(b"\n")[0]
        except OSError:
            return []
        if not whole:
            return []
        self.read += len(whole) + 1
        lines = whole.decode(errors="replace").split("\n")
        return [line.rstrip().rsplit("\r", 1)[-1] for line in lines if not line.startswith(rank_logs.BEGINS)]


class Screen:
    """What a person sees of a run. `history` leaves out what happened before: the panel knows it, no line tells it."""

    def __init__(self, path: Path, began: float, launcher: Path | None = None) -> None:
        stream = lasting(sys.stdout)
        self.feed, self.state = Feed(path), State(path, began)
        self.launcher = Printed(launcher) if launcher else None
        self.rank_0, self.late, self.broken = Printed(rank_logs.log_of(path, 0)), list[str](), False
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
        launcher_said = self.launcher.new() if self.launcher else []
        news, said = self.feed.new(), list[str]()
        for happened in news:
            self.state.take(happened)
            said += self.lines.of(happened)
            if "event" in happened:
                self.broken = (self.broken or bool(happened.get("rank"))) and happened["event"] != "restart"
        self.view.complain(self._rank_0_said())
        said += launcher_said  # what it wrote before it was read after it
        if news or said or began - self.drawn_at >= STILL_SECONDS:
            self.view.draw(said)
            self.drawn_at = began
        return min(max(POLL_SECONDS, (time.thread_time() - used) / SHARE), MOST_SECONDS)

    def _rank_0_said(self) -> list[str]:
        """What rank 0 printed until the last call. It is late by one look, so that a fault is known before it.

        When another rank broke, rank 0 only complains that it is gone.
        """
        said, self.late = self.late, self.rank_0.new()
        return [] if self.broken else said

    def close(self, keep: bool) -> None:
        """Show the rest, and leave the panel there or not."""
        self.refresh()
        self.drawn_at = -STILL_SECONDS
        self.refresh()
        self.view.close(keep)
        self.feed.close()


@contextmanager
def following(path: Path, began: float) -> Iterator[int | None]:
    """Show a run that this process starts, since `began` (seconds since 1970), in a thread until the block ends.

    Yields the descriptor that the launcher is to print to, None for those of this process: what it prints into a panel
    would break it up, so it is shown above. So is what rank 0 prints into its log. What cannot be printed any more is
    lost, and the run goes on.
    """
    with tempfile.NamedTemporaryFile("ab") as written:
        drawn = draws(sys.stdout) and sys.stderr.isatty()
        screen = Screen(path, began, Path(written.name) if drawn else None)
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
