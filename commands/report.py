"""`stagecraft report`: the summary and the curve of a run."""

import sys

from commands import cli
from run.report import plot, show, summary
from run.select import HELP, find


def main() -> None:
    parser = cli.Parser("Show how far a run is, or how it ended, and draw its curve. The run may be training.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()

    def job() -> object:
        path = find(args.run)
        values = summary(path)
        try:
            plot(path, values)
        except OSError as error:  # the run of a colleague, say
            print(f"the curve was not drawn: {error}", file=sys.stderr)
        if not args.json:
            show(path, values)
        return values

    cli.run_job(job, args.json)
