"""`stagecraft watch`: a run while it goes, whoever started it."""

import time

from commands import cli
from launch import follow
from run.directory import read_recipe
from run.feed import Feed
from run.select import HELP, find, latest
from run.state import State


def main() -> None:
    parser = cli.Parser("Show a run until it is over: a panel on a terminal, else lines. Ctrl-C leaves the run alone.")
    parser.add_argument("run", nargs="?", help=f"{HELP}, also where it has no step yet")
    parser.add_argument("--json", action="store_true", help="print where the run is now as JSON, and end")
    args = parser.parse_args()

    def job() -> object:
        path = find(args.run) if args.run else latest()
        read_recipe(path)
        if not args.json:
            follow.watch(path)
            return None
        state = State(path, follow.began_at(path))
        for happened in Feed(path).new():
            state.take(happened)
        return state.value(time.time())

    cli.run_job(job, args.json)
