"""A command in a terminal of its own, where Ctrl-C is what it is: a key."""

import fcntl
import os
import pty
import termios
from collections.abc import Mapping
from typing import NoReturn, Self

from recipes.registry import ROOT
from tests import interpreter
from tests.patience import Patience


class Window:
    """A terminal, and `python -m commands arguments` in it, as a fork of a process that has imported everything."""

    def __init__(self, *arguments: str) -> None:
        self.file, inside = pty.openpty()
        streams = (os.ttyname(inside),) * 3
        self.process = interpreter.context.Process(target=_inside, args=(arguments, dict(os.environ), streams))
        self.process.start()
        self.pid, self.inside, self.text = int(self.process.pid), inside, ""
        os.set_blocking(self.file, False)

    def _read(self) -> bool:
        """Whether more is shown."""
        try:
            self.text += os.read(self.file, 4096).decode(errors="replace")
        except BlockingIOError:
            return False
        return True

    def until(self, words: str) -> str:
        """What is shown until these words are."""
        patience = Patience([self.pid])
        while words not in self.text:
            over = not self.process.is_alive()
            assert self._read() or not over, f"ended without {words!r}: {self.text}"
            patience.check(f"waiting for {words!r} behind {self.text!r}")
        found, _, self.text = self.text.partition(words)
        return found

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def end(self) -> tuple[int, str]:
        """Its exit status, and what is shown until then."""
        patience = Patience([self.pid])
        while self.process.is_alive():
            self._read()
            patience.check("waiting for its end")
        while self._read():
            pass
        return int(self.process.exitcode), self.text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the window; what a failed test left in it ends, or the tests would wait for it."""
        self.process.kill()
        self.process.join()
        for file in (self.file, self.inside):
            os.close(file)


def _inside(arguments: tuple[str, ...], env: Mapping[str, str], streams: tuple[str, str, str]) -> NoReturn:
    os.setsid()
    terminal = os.open(streams[0], os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # its keys are this session's
    os.close(terminal)
    interpreter._first(["-m", "commands", *arguments], str(ROOT), dict(env), streams)
