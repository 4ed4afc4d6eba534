"""`stagecraft check mine.json`: all that is wrong with a DeepSpeed JSON, or what it resolves to. Imports no torch."""

import json
import sys
from pathlib import Path

from commands import cli
from planner.checking import Checked, checked
from recipes.registry import load
from support.errors import WRONG_INPUT


def main() -> None:
    parser = cli.Parser("All that is wrong with a DeepSpeed JSON at once, or what it resolves to. Starts nothing.")
    parser.add_argument("json_file", type=Path, metavar="JSON", help="the DeepSpeed JSON")
    parser.add_argument("--recipe", default="345m", help="the recipe that fills in what the JSON leaves open")
    parser.add_argument("--world-size", type=int, help="ranks in all; by default those that the recipe is planned for")
    parser.add_argument("--json", action="store_true", help="print as JSON, also what is wrong")
    args = parser.parse_args()
    found: list[Checked] = []

    def job() -> Checked:
        recipe = load(args.recipe)
        world = recipe.cluster.world_size if args.world_size is None else args.world_size
        found.append(checked(recipe, args.json_file, world))
        if not args.json:
            show(found[0])
        return found[0]

    cli.run_job(job, args.json)
    if found[0]["problems"]:
        raise SystemExit(WRONG_INPUT)


def show(values: Checked) -> None:
    """Print what is wrong; else what is worth knowing, and the resolved JSON."""
    for problem in values["problems"]:
        line = f" line {problem['line']}" if problem["line"] else ""
        print(f"error: {problem['file']}{line}: {problem['what']}; {problem['remedy']}", file=sys.stderr)
    if values["problems"]:
        return
    print(json.dumps(values["resolved"], indent=2))
    print(f"{values['file']} is good for {values['recipe']} on {values['world_size']:,} ranks")
    for deviation in values["deviations"]:
        print(f"deviates from the recipe: {deviation}")
    for line in values["notes"]:
        print(line)
    for difference in values["differences"]:
        print(f"differs from the recipe's own JSON: {difference}")
