"""A panel on a terminal, drawn over and over, and lines that stay above it."""

from collections import deque
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from run.panel import RunPanel
from run.state import State

SPARE = 2  # columns
KEPT = 200  # lines above the panel that are printed again after a resize


class _Narrower:
    """The panel without the last columns: the terminal writes `^C` there, and the panel's lines do not move."""

    def __init__(self, panel: RunPanel) -> None:
        self.panel = panel

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.panel, options.update(width=options.max_width - SPARE))


class Drawn:
    """The panel, and above it the lines that stay."""

    def __init__(self, stream: TextIO, state: State) -> None:
        self.panel = _Narrower(RunPanel(state))
        self.console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.size = self.console.size
        self.kept: deque[str] = deque(maxlen=KEPT)

    def draw(self, lines: list[str]) -> None:
        self.kept.extend(lines)
        if self.live and self.console.size != self.size:
            # The terminal has broken the panel's lines anew: nobody knows how many there are. So all is drawn again.
            self.live.stop()
            self.live = None
            self.console.clear()
            lines = list(self.kept)[-self.console.height :]
        self.size = self.console.size
        if self.live is None:
            self.live = Live(self.panel, console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        if lines:  # with each print all of the panel is drawn again
            self.console.print(Text("\n").join(map(Text.from_ansi, lines)), soft_wrap=True)
        else:
            self.live.refresh()

    def complain(self, lines: list[str]) -> None:
        if lines:
            self.draw(lines)

    def close(self, keep: bool) -> None:
        if self.live:
            self.live.transient = not keep
            self.live.stop()
