"""`stagecraft compare a b`: runs beside each other, in a table and in one picture."""

from pathlib import Path

from commands import cli
from run.directory import runs_root


def main() -> None:
    parser = cli.Parser(
        "Compare two to eight runs: where they differ, and their losses at equal tokens and equal time."
    )
    parser.add_argument("runs", nargs="+", help="a run's directory, name, id or the beginning of one; or newest")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the picture; by default compare.png in runs/")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    args = parser.parse_args()

    def job() -> object:
        from run.compare import compare, plot, told
        from run.compare_show import show
        from run.select import find

        runs = told([find(text) for text in args.runs])
        out = args.out or runs_root() / "compare.png"
        values = {**compare(runs), "picture": str(out)}
        plot(runs, out)
        if not args.json:
            show(values)
            print(f"picture: {out}")
        return values

    cli.run_job(job, args.json)
