"""`stagecraft save mine`: a checkpoint of a run that trains, now."""

from commands import cli
from run import save_request
from run.select import HELP, find


def main() -> None:
    parser = cli.Parser("Have a run that trains on this machine save after the step in hand. It trains on.")
    parser.add_argument("run", nargs="?", help=HELP)
    parser.add_argument("--json", action="store_true", help="print which run was asked as JSON")
    args = parser.parse_args()

    def job() -> dict[str, str]:
        run = find(args.run)
        save_request.ask(run)
        if not args.json:
            print(f"asked {run}: it saves after the step in hand")
        return {"run": str(run)}

    cli.run_job(job, args.json)
