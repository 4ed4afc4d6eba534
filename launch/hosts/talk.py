"""Lines of JSON between two processes, over a pair of pipes. Neither waits for the other."""

import json
import os
import time

from support.json_object import JsonObject


class Talk:
    """One end: it hears from the descriptor `ears` and speaks to the descriptor `mouth`; both become non-blocking."""

    def __init__(self, ears: int, mouth: int) -> None:
        self.ears, self.mouth = ears, mouth
        os.set_blocking(ears, False)
        os.set_blocking(mouth, False)
        self.over = False  # the other end is gone
        self.heard_at = time.monotonic()
        self._unsaid, self._unread = b"", b""

    def say(self, **message: object) -> None:
        """Send a message. What the pipe does not take now goes with the next one."""
        self._unsaid += json.dumps(message).encode() + b"\n"
        try:
            while self._unsaid:
                self._unsaid = self._unsaid[os.write(self.mouth, self._unsaid) :]
        except BlockingIOError:
            pass
        except OSError:
            self.over = True

    def heard(self) -> list[JsonObject]:
        """What came since the last call. A line that is no message (a greeting of a login shell) is passed over."""
        try:
            while read := os.read(self.ears, 2**16):
                self._unread += read
                self.heard_at = time.monotonic()
            self.over = True
        except BlockingIOError:
            pass
        except OSError:
            self.over = True
        *lines, self._unread = self._unread.split(b"\n")
        return [message for line in lines if (message := _message(line)) is not None]

    @property
    def silent(self) -> float:
        """Seconds since something was heard."""
        return time.monotonic() - self.heard_at


def _message(line: bytes) -> JsonObject | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
