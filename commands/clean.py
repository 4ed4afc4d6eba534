"""Clean a corpus: `stagecraft clean my/texts --out cleaned`."""

import os
from pathlib import Path

from commands import cli
from data.cleaning import clean, decontamination
from data.cleaning.stages import DEFAULT, STAGES, Settings
from support.json_object import JsonObject
from support.terminal import StatusLine, print_table


def print_report(report: JsonObject, out: Path) -> None:
    """Print what each stage did."""
    from rich.table import Table

    table = Table("stage", "documents dropped", "changed", "MB removed", "most by the rule")
    for stage in report["stages"]:
        rules = sorted(stage["rules"].items(), key=lambda rule: (-rule[1], rule[0]))
        table.add_row(
            stage["stage"],
            f"{stage['dropped']:,}",
            f"{stage['changed']:,}",
            f"{stage['bytes_removed'] / 1e6:,.2f}",
            ", ".join(f"{rule} ({count:,})" for rule, count in rules[:2]),
        )
    print_table(table)
    print(
        f"kept {report['documents_kept']:,} documents, {report['bytes_kept'] / 1e6:,.2f} MB, of "
        f"{report['documents_read']:,}, {report['bytes_read'] / 1e6:,.2f} MB"
    )
    for line in decontamination.summary(report.get("evaluation")):
        print(line)
    for kind, count in report["unreadable"].items():
        print(f"skipped {count:,} times: {kind}")
    print(f"corpus: {out}")
    print(f"report and samples of what was dropped: {out / clean.ABOUT}")


def main() -> None:
    stages = "; ".join(f"{name}: {what}" for name, what in STAGES.items())
    parser = cli.Parser(
        "Clean a corpus into a folder that is itself a corpus, with counts and samples of what was dropped. The same "
        f"command goes on with what was interrupted. Stages, in the order in which they run: {stages}; "
        f"default: {' '.join(DEFAULT)}."
    )
    parser.add_argument("corpus", help="a named corpus, a file, folder or glob, or a Hugging Face data set id")
    parser.add_argument("--out", required=True, metavar="DIR", help="the cleaned corpus; must not exist")
    parser.add_argument("--stages", nargs="+", default=["default"], metavar="STAGE[:ARGUMENT]", help="what to do")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="for input that cannot be read")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()

    def job() -> object:
        settings = Settings(args.corpus, tuple(args.stages), args.on_error == "skip")
        status = StatusLine()
        try:
            report = clean.clean(settings, Path(args.out), args.workers, status.say)
        finally:
            status.end()
        if not args.json:
            print_report(report, Path(args.out))
        return report

    cli.run_job(job, args.json)
