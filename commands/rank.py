"""One rank of a run that `stagecraft pretrain` launched: the run directory says what it is to do."""

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from commands import cli
from support.terminal import lasting_output


def main() -> None:
    parser = cli.Parser("One rank of a launched run.")
    parser.add_argument("--run-dir", type=Path, required=True, help="what the launcher wrote")
    args = parser.parse_args()
    from training import train

    be_rank(lambda: train.train_launched(args.run_dir))


def be_rank(job: Callable[[], None]) -> NoReturn:
    """Train, and end past C++'s own clearing up: gloo's threads now and then abort a process in it."""
    with lasting_output():
        cli.run_job(job)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
