"""`stagecraft report`: the summary and the curve of a run."""

from commands import cli
from run.report import plot, read, show
from run.select import HELP, find


def main() -> None:
    parser = cli.Parser("Show the report of a run and draw its curve again.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()

    def job() -> object:
        path = find(args.run)
        values = read(path)
        plot(path)
        if not args.json:
            show(path)
        return values

    cli.run_job(job, args.json)
