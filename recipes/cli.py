"""What all command lines share: a parser that errs in one line, and errors that do the same."""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from recipes.recipe import ROOT

USER_ERROR = 2  # exit status


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help")


def fail(message: str) -> NoReturn:
    """Say why in one line and end with a status that is not zero."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        # Most errors come to all ranks alike. Rank 0 says it for all; when it ends, the launcher ends the others.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training rather notes a signal and goes on
        time.sleep(5)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


def run_job(job: Callable[[], Any], as_json: bool = False) -> None:
    """Run a job; what its user can mend is one line, what only we can mend keeps its traceback.

    With `as_json` standard output holds what the job returns, as JSON, and nothing else.
    A `ValueError` raised in this project's own code is addressed to the user, and so is every refusal of the
    operating system. A `ValueError` out of a library is a bug of ours.
    """
    try:
        if as_json:
            with _output_is_noise():
                result = job()
            print(json.dumps(result), flush=True)
        else:
            job()
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _ours(error):
            raise
        if os.environ.get("STAGECRAFT_TRACEBACK"):
            traceback.print_exc()
        fail(str(error))


@contextmanager
def _output_is_noise() -> Iterator[None]:
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


def _ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    origin = Path(frames[-1].filename).resolve()
    return origin.is_relative_to(ROOT) and "site-packages" not in origin.parts
