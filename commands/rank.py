"""One rank of a run that `stagecraft pretrain` launched: the run directory says what it is to do."""

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from commands import cli
from support.errors import CRASHED, DONE
from support.terminal import lasting_output
from training import launchers, presence, stop


def main() -> None:
    parser = cli.Parser("One rank of a launched run.")
    parser.add_argument("--run-dir", type=Path, required=True, help="what the launcher wrote")
    args = parser.parse_args()
    stop.listen()
    launchers.is_rank()  # DeepSpeed's launcher may be mpirun
    presence.enter(args.run_dir, int(os.environ["RANK"]))

    def job() -> None:
        from training import train

        train.train_launched(args.run_dir)

    _be_rank(job)


def be_rank(job: Callable[[], None]) -> NoReturn:
    """Be a rank that another launcher started."""
    stop.listen()
    presence.watch_launcher()
    _be_rank(job)


def _be_rank(job: Callable[[], None]) -> NoReturn:
    """Train, and end for good."""

    def trained() -> None:
        with lasting_output():
            cli.run_job(job)

    to_the_end(trained)


def to_the_end(job: Callable[[], None]) -> NoReturn:
    """Do a rank's job, and end past C++'s own clearing up, and past Python's, whatever the end.

    gloo's threads now and then abort a process in the first, and a thread that still writes a checkpoint in the second.
    """
    status = CRASHED
    try:
        job()
        status = DONE
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else CRASHED
    except Exception:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
