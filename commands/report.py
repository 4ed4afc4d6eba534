"""`stagecraft report`: the summary and the curve of a run."""

from pathlib import Path

from commands import cli
from run.directory import newest
from run.report import plot, read, show


def main() -> None:
    parser = cli.Parser("Show the report of a run and draw its curve again.")
    parser.add_argument("--run", type=Path, help="run directory; by default the newest")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()

    def job() -> object:
        path = args.run or newest()
        values = read(path)
        plot(path)
        if not args.json:
            show(path)
        return values

    cli.run_job(job, args.json)
