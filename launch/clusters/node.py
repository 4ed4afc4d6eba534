"""The ranks of one node, where a cluster's operator starts one process a node: `python -m launch.clusters.node`.

torchrun starts them, as the operator's `PET_*` variables say. It ends with 1 whatever a rank ended with (torch 2.13,
elastic/multiprocessing/errors), and the operator is to know that a run saved, or that another try is of no use.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from launch import local
from run.directory import end_of
from support.errors import CRASHED, DONE, GAVE_UP, STOPPED, WEIGHTS_LOST, WRONG_INPUT

FOR_GOOD = (WRONG_INPUT, WEIGHTS_LOST, GAVE_UP)  # another try would end alike


def main(arguments: Sequence[str] | None = None) -> None:
    """Errors: `SystemExit` with the status of the node's ranks."""
    parser = argparse.ArgumentParser(description="The ranks of one node, under torchrun.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--stop-seconds", type=int, required=True, help="that ranks have to save and to end")
    parser.add_argument("--again", type=int, help="the status to end with where another try may help")
    parser.add_argument("module", help="what each rank runs")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its arguments, beside --run-dir and --resume auto")
    args = parser.parse_args(arguments)
    os.environ.update(local.environment(int(os.environ.get("PET_NPROC_PER_NODE", "1"))))
    words = [args.module, "--run-dir", str(args.run_dir), "--resume", "auto", *args.words]
    status = see_through(args.run_dir, args.stop_seconds, words)
    raise SystemExit(status if args.again is None or status in (DONE, *FOR_GOOD) else args.again)


def see_through(run: Path, stop_seconds: int, words: Sequence[str]) -> int:
    """Start `python -m words` as the ranks of this node; returns the status of the first one that failed, or 0.

    SIGTERM is passed on to them, and they have `stop_seconds` to save in.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        torchrun.run(torchrun.parse_args(["--shutdown-timeout", str(stop_seconds), "--module", *words]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode in (STOPPED, *FOR_GOOD) else CRASHED
    except SignalException:  # nobody is told how the ranks ended; rank 0 has noted it
        return STOPPED if end_of(run) == STOPPED else CRASHED
    return DONE


if __name__ == "__main__":
    main()
