"""A start in the events of its run, from whoever began it: our launcher, or rank 0 under another one."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from run import events
from run.directory import Run, note_end
from support.errors import CRASHED, UserError


@contextmanager
def noted(run: Run, began: float, at_data: float) -> Iterator[None]:
    """Keep in the run directory when a start began, what it was busy with, and how it ended.

    Times are in seconds since 1970. The directory is there from the data on, so its first events are older than itself.
    A crash that no rank has noted is noted here.
    """
    facts = {"resumed": run.resume, "world_size": run.world_size, "pid": os.getpid(), "host": socket.gethostname()}
    events.note(run.path, "start", time=began, **facts)
    events.note(run.path, "phase", time=at_data, phase="data")
    events.note(run.path, "phase", phase="imports")
    try:
        yield
    except BaseException as error:
        status = error.status if isinstance(error, UserError) else CRASHED
        note_end(run.path, status, str(error) or type(error).__name__)
        raise
    finally:
        file = run.path / "status.json"  # a full disk has none
        events.note(run.path, "end", **(json.loads(file.read_text()) if file.exists() else {"status": CRASHED}))
