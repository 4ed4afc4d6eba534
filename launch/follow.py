"""Show a run while it goes: a panel on a terminal, plain lines elsewhere. Both come from the run's files alone."""

import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from run.feed import Feed
from run.lines import Lines
from run.panel import RunPanel
from run.state import State
from support.terminal import Lasting, draws

POLL_SECONDS = 0.25
STILL_SECONDS = 1.0  # between two drawings while nothing happens
MOST_SECONDS = 2.0  # between two looks
SHARE = 0.01  # of a processor that drawing may take
KEPT = 200  # lines above the panel that are printed again after a resize


class Plain:
    """Lines, one below the other."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def draw(self, lines: list[str], panel: RunPanel) -> None:
        if lines:
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()

    def close(self, panel: RunPanel, keep: bool) -> None:
        if keep:
            Console(file=self.stream, width=100).print(panel)
            self.stream.flush()


class Drawn:
    """The panel, and above it the lines that stay."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.size = self.console.size
        self.kept: deque[str] = deque(maxlen=KEPT)

    def draw(self, lines: list[str], panel: RunPanel) -> None:
        self.kept.extend(lines)
        if self.live and self.console.size != self.size:
            # The terminal has broken the panel's lines anew: nobody knows how many there are. So all is drawn again.
            self.live.stop()
            self.live = None
            self.console.clear()
            lines = list(self.kept)
        self.size = self.console.size
        if self.live is None:
            self.live = Live(panel, console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        for line in lines:
            self.console.print(Text.from_ansi(line), soft_wrap=True)
        self.live.refresh()

    def close(self, panel: RunPanel, keep: bool) -> None:
        if self.live:
            self.live.transient = not keep
            self.live.stop()


class Screen:
    """What a person sees of a run. `history` leaves out what happened before: the panel knows it, no line tells it."""

    def __init__(self, path: Path, began: float, ranks_say: BinaryIO | None = None) -> None:
        stream: TextIO = Lasting(sys.stdout)  # type: ignore[assignment]  # all of a stream that is used here
        live = draws(sys.stdout)
        self.feed, self.state, self.ranks_say = Feed(path), State(path, began), ranks_say
        self.lines = Lines(path, steps=not live)
        self.panel = RunPanel(self.state)
        self.view: Plain | Drawn = Drawn(stream) if live else Plain(stream)
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
        said = self._ranks_said()
        news = self.feed.new()
        for happened in news:
            self.state.take(happened)
            said += self.lines.of(happened)
        if news or said or began - self.drawn_at >= STILL_SECONDS:
            self.view.draw(said, self.panel)
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
        self.view.close(self.panel, keep)
        self.feed.close()


@contextmanager
def following(path: Path) -> Iterator[int | None]:
    """Show a run that this process starts, in a thread, until the block ends.

    Yields the descriptor that the ranks are to print to, None for those of this process: what they print into a panel
    would break it up, so it is shown above. What cannot be printed any more is lost, and the run goes on.
    """
    with tempfile.NamedTemporaryFile("ab") as written, open(written.name, "rb") as ranks_say:
        drawn = draws(sys.stdout) and sys.stderr.isatty()
        screen = Screen(path, time.time(), ranks_say if drawn else None)
        screen.history()
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
        while not screen.state.over(time.time()):
            time.sleep(pause)
            pause = screen.refresh()
    except KeyboardInterrupt:
        pass
    screen.close(keep=True)


def began_at(path: Path) -> float:
    """When a run was started last, for what was started before there were events."""
    file = path / "start.json"
    return file.stat().st_mtime if file.exists() else time.time()
