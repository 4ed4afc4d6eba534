"""`stagecraft runs`: the runs there are."""

from commands import cli
from recipes.registry import load
from run.listing import show, summaries
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser(
        "List the runs, the one that was started last first: what they are called, how they are, how far they are, "
        "and what differs from their recipe."
    )
    parser.add_argument("recipe", nargs="?", help="only the runs of this recipe")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        found = summaries(load(args.recipe).name if args.recipe else None)
        if not args.json:
            show(found)
        return found

    cli.run_job(job, args.json)
