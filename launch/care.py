"""How a run is looked after: what its user may set, and who is told."""

import json
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run import events
from support.errors import UserError

RESTARTS = 3
NOTIFY_SECONDS = 30.0


@dataclass(frozen=True)
class Care:
    """How a run is looked after.

    `restarts` is how often in a row it is launched again without a new checkpoint in between. `hang_seconds` takes the
    place of what a step may take at least. `notify` is a command line; see `tell`.
    """

    restarts: int = RESTARTS
    hang_seconds: float | None = None
    notify: str | None = None

    def check(self) -> None:
        """Errors: `UserError` for what cannot be."""
        if self.restarts < 0:
            raise UserError(f"--restarts is {self.restarts}; it must be at least 0")
        if self.hang_seconds is not None and not self.hang_seconds > 0:
            raise UserError(f"--hang-seconds is {self.hang_seconds:g}; it must be above 0")
        if self.notify is not None and not self._command():
            raise UserError(
                "--notify has no command line, or one with a quote left open; write it as you would type it"
            )

    def _command(self) -> list[str]:
        try:
            return shlex.split(self.notify or "")
        except ValueError:
            return []

    def tell(self, path: Path, event: str, **facts: Any) -> None:
        """Give an event of the run in `path` to the command of `notify`: JSON on its standard input; no shell reads it.

        The run is worth more than who is told: what fails is said, and no more.
        """
        if not (command := self._command()):
            return
        message = json.dumps({"run": str(path.absolute()), "time": time.time(), "event": event, **facts}) + "\n"
        try:
            done = subprocess.run(
                command,
                input=message.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=NOTIFY_SECONDS,
                start_new_session=True,
            )
            failed = f"it ended with status {done.returncode}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failed = str(error)
        if failed:
            events.note(path, "said", line=f"--notify {command[0]}: {failed}")
