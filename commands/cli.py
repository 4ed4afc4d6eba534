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
from typing import NoReturn

from support.errors import CRASHED, WRONG_INPUT, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help", WRONG_INPUT)


def fail(message: str, status: int) -> NoReturn:
    """Say why in one line and end with this exit status."""
    _let_rank_0_speak()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _let_rank_0_speak() -> None:
    """Most errors come to all ranks alike, or because rank 0 has ended. It says why; the launcher ends the others."""
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training rather notes a signal and goes on
        time.sleep(5)


def run_job(job: Callable[[], object], as_json: bool = False) -> None:
    """Run a job; what its user can mend is one line, what only we can mend keeps its traceback.

    With `as_json` standard output holds what the job returns, as JSON, and nothing else. A refusal of the operating
    system (a full disk, a lost mount) is one line too, but counts as a crash: it may be well the next time.
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
        raise SystemExit(CRASHED) from None
    except (UserError, OSError) as error:
        if os.environ.get("STAGECRAFT_TRACEBACK"):
            traceback.print_exc()
        fail(str(error), error.status if isinstance(error, UserError) else CRASHED)
    except Exception:
        _let_rank_0_speak()
        print("this is a bug of Stagecraft; please report it with the lines below", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from what is finished", 128 + signal.SIGINT)


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
