"""What commands say on a terminal: tables, and how far the work is."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = 140  # of what goes into a file or a pipe, which have no width: enough for every table
Say = Callable[[str], None]


def console() -> "Console":
    """Standard output for tables and rules: as wide as the terminal, or `COLUMNS` where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else COLUMNS, highlight=False)


def print_table(table: Any) -> None:
    """Print a rich table on standard output."""
    console().print(table)


def draws(stream: TextIO) -> bool:
    """Whether something may be drawn over again on a stream: on a terminal that moves its cursor, and not for CI."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class _Lasting:
    """What `lasting` returns."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            return self.stream.write(text.encode(self.stream.encoding, "replace").decode(self.stream.encoding))
        except (OSError, ValueError):  # a value error: the stream is closed
            self._let_go()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _let_go(self) -> None:
        """Whatever is still printed goes nowhere: what the stream keeps back, and what others print on it."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def lasting(stream: TextIO) -> TextIO:
    """A stream whose reader may go: a closed pipe or a lost terminal silences it for good and is no error."""
    return cast(TextIO, _Lasting(stream))  # what it does not do itself, the stream does


@contextmanager
def lasting_output() -> Iterator[None]:
    """What is printed in the block is lost where its reader has gone; else printing would end what goes on."""
    with redirect_stdout(lasting(sys.stdout)), redirect_stderr(lasting(sys.stderr)):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def now_and_then(say: Say, seconds: float = 10.0, at_once: bool = True) -> Say:
    """Pass on a line, then none for some seconds; the first one `at_once`, or some seconds from now."""
    last = -math.inf if at_once else time.monotonic()

    def sparing(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(line)

    return sparing


class StatusLine:
    """How far the work is, on standard error: one line that is written over, or where that is no terminal, a line now
    and then."""

    def __init__(self) -> None:
        self._width = 0
        self.say = self._over if sys.stderr.isatty() else now_and_then(lambda line: print(line, file=sys.stderr))

    def _over(self, line: str) -> None:
        print(f"\r{line:{self._width}}", end="", file=sys.stderr, flush=True)  # padded: no rest of a longer one shows
        self._width = len(line)

    def end(self) -> None:
        """Leave the line, so that what follows stands below it."""
        if self._width:
            print(file=sys.stderr)


@contextmanager
def output_is_noise() -> Iterator[None]:
    """What libraries print, or the processes that they start, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()  # a logger may have kept it
        os.dup2(kept, 1)
        os.close(kept)
