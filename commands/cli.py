"""What all command lines share: a parser that errs in one line, and errors that do the same."""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import NoReturn

from support import signals
from support.errors import CRASHED, STOPPED, WRONG_INPUT, UserError, before_traceback, in_lines
from support.json_object import finite
from support.terminal import output_is_noise


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """A default is shown where it says something."""
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help", WRONG_INPUT)


def fail(message: str, status: int, *more: str) -> NoReturn:
    """Say why, a line for each thing that is wrong, and end with this exit status."""
    _let_rank_0_speak()
    print(in_lines(message, *more), file=sys.stderr, flush=True)
    raise SystemExit(status)


def _let_rank_0_speak() -> None:
    """Most errors come to all ranks alike, or as rank 0 has ended. It says why; the launcher ends the others."""
    if os.environ.get("RANK", "0") != "0" and "STAGECRAFT_OWN_LOG" not in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training rather notes a signal and goes on
        time.sleep(5)


def run_job(job: Callable[[], object], as_json: bool = False) -> None:
    """Run a job; what its user can mend is one line, what only we can mend keeps its traceback.

    With `as_json` standard output holds what the job returns, as JSON, and nothing else; docs/json.md has the keys.
    A refusal of the operating system (a full disk) is one line too, but a crash. So are requests to stop.
    """
    restore = signals.interrupt()
    try:
        with output_is_noise() if as_json else nullcontext():
            result = job()
        if as_json:
            print(json.dumps(finite(result)))
        sys.stdout.flush()  # here, where it is known what to do without a reader
    except KeyboardInterrupt:
        (restore := signals.ignore)()
        fail("stopped; give the same command again, what is finished is kept", STOPPED)
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CRASHED) from None
    except (UserError, OSError) as error:
        if os.environ.get("STAGECRAFT_TRACEBACK"):
            traceback.print_exc()
        lines, status = (error.lines, error.status) if isinstance(error, UserError) else ([str(error)], CRASHED)
        fail(lines[0], status, *lines[1:])
    except Exception as error:
        _let_rank_0_speak()
        print(before_traceback(error, "RANK" in os.environ), file=sys.stderr)
        raise
    finally:
        restore()
