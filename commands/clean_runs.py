"""`stagecraft clean-runs`: remove what runs left."""

import argparse
import sys
from pathlib import Path

from commands import cli
from launch.clusters.runs import waits
from run.cleaning import Leftover, leftovers, remove, show
from run.select import HELP, find
from support.errors import UserError
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser(
        "Remove what runs left: checkpoints before the newest whole one, files that were not finished, and starts that "
        "never finished a step. It lists them and asks. A run that goes on, and what a branch still needs, stay."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"{HELP}; several can be given; none means all")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("--keep", type=int, default=1, metavar="N", help="whole checkpoints that stay in each run")
    parser.add_argument(
        "--older", type=float, default=0.0, metavar="DAYS", help="only runs to which nothing happened for so long"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON; removes nothing without --yes")
    args = parser.parse_args()

    def job() -> JsonObject:
        chosen = [find(text) for text in args.runs]
        found = _that_can_go(chosen, args)
        if not args.json:
            show(found)
        removes = bool(found) and (args.yes or (not args.json and _agreed()))
        if removes:
            again = found if args.yes else _that_can_go(chosen, args)  # an answer may take hours
            remove([each for each in again if each in found])
        told = [{"path": str(each.path), "bytes": each.size, "why": each.why} for each in found]
        return {"removed": removes, "bytes": sum(each.size for each in found), "leftovers": told}

    cli.run_job(job, args.json)


def _that_can_go(chosen: list[Path], args: argparse.Namespace) -> list[Leftover]:
    """What can go, but for starts whose job waits in a queue."""
    return [each for each in leftovers(chosen, args.keep, args.older) if each.path != each.run or not waits(each.run)]


def _agreed() -> bool:
    """Whether the person at the terminal wants it. Errors: `UserError` where there is none."""
    if not sys.stdin or not sys.stdin.isatty():
        raise UserError("nothing was removed: here is nobody to ask; add --yes")
    return input("remove them? [y/N] ").strip().lower() in ("y", "yes")
