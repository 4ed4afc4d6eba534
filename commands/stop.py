"""`stagecraft stop`: have a run save and end, wherever it runs."""

from commands import cli
from launch.clusters.runs import stop
from run.select import HELP, find, latest


def main() -> None:
    parser = cli.Parser("Ask a run to save and to end: through its scheduler, or its command on this machine.")
    parser.add_argument("--run", help=f"{HELP}, also where it has no step yet")
    parser.add_argument("--json", action="store_true", help="print which run was asked as JSON")
    args = parser.parse_args()

    def job() -> dict[str, str]:
        path = find(args.run) if args.run else latest()
        done = stop(path)
        if not args.json:
            print(done)
        return {"run": str(path), "done": done}

    cli.run_job(job, args.json)
