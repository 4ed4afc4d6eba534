"""`stagecraft note mine "lr too high after step 4000"`: a note in a run's record."""

from commands import cli
from run import events
from run.directory import read_recipe
from run.select import HELP, find
from support.errors import UserError


def main() -> None:
    parser = cli.Parser("Write a note into a run's record (events.jsonl); stagecraft runs --json shows the last.")
    parser.add_argument("run", help=HELP)
    parser.add_argument("text", help="the note")
    parser.add_argument("--json", action="store_true", help="print which run has the note as JSON")
    args = parser.parse_args()

    def job() -> dict[str, str]:
        run = find(args.run)
        read_recipe(run)
        if not args.text.strip():
            raise UserError("the note is empty; write what is to be remembered")
        events.add(run, "note", text=args.text)
        if not args.json:
            print(f"noted in {run}")
        return {"run": str(run), "note": args.text}

    cli.run_job(job, args.json)
