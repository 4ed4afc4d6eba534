"""`stagecraft logs`: what a run printed."""

from commands import cli
from run import printed
from run.select import HELP, find, latest


def main() -> None:
    parser = cli.Parser(
        "Show the last lines of a run's logs: its job's, rank 0's, and those of ranks that failed last."
    )
    parser.add_argument("--run", help=f"{HELP}, also where it has no step yet")
    parser.add_argument("--rank", type=int, help="the log of this rank alone")
    parser.add_argument("--follow", action="store_true", help="print what is added, until the run ends or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print files and lines as JSON")
    args = parser.parse_args()

    def job() -> object:
        path = find(args.run) if args.run else latest()
        files = printed.files(path, args.rank)
        if args.json:
            return {"run": str(path), "logs": printed.described(files)}
        printed.show(files)
        if args.follow:
            printed.follow(path, files)
        return None

    cli.run_job(job, args.json)
