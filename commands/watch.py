"""`stagecraft watch`: a run while it goes, whoever started it."""

import time

from commands import cli
from launch import follow
from run.directory import read_recipe
from run.select import HELP, find, latest
from run.state import state_of


def main() -> None:
    parser = cli.Parser("Show a run until it is over: a panel on a terminal, else lines. Ctrl-C leaves the run alone.")
    parser.add_argument("run", nargs="?", help=f"{HELP}, also where it has no step yet")
    parser.add_argument("--json", action="store_true", help="print where the run is now as JSON, and end")
    args = parser.parse_args()

    def job() -> object:
        path = find(args.run) if args.run else latest()
        read_recipe(path)
        if args.json:
            return state_of(path).value(time.time())
        follow.watch(path)
        return None

    cli.run_job(job, args.json)
