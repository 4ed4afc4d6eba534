"""What two recipes do not share: `stagecraft diff 345m 760m`."""

from typing import Any

from commands import cli
from recipes.registry import load
from support.json_object import JsonObject
from support.terminal import print_table


def text(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:,}"
        if isinstance(value, int)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def show(values: JsonObject) -> None:
    """Print a table for the recipes and one for the JSONs."""
    from rich.table import Table

    for part, title in (("recipe", "recipe"), ("json", "JSON as DeepSpeed gets it")):
        if not values[part]:
            print(f"{title}: no difference")
            continue
        table = Table(title)
        for name in (values["a"], values["b"]):
            table.add_column(name, overflow="fold")  # a blend is one long word
        for row in values[part]:
            table.add_row(row["field"], text(row["a"]), text(row["b"]))
        print_table(table)


def main() -> None:
    parser = cli.Parser(
        "Two recipes side by side, and their JSONs as DeepSpeed gets them; what they share is left out."
    )
    parser.add_argument("a", metavar="RECIPE", help="a recipe, for example 345m")
    parser.add_argument("b", metavar="RECIPE", help="another one")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        from planner.compare import compare

        values = compare(load(args.a), load(args.b))
        if not args.json:
            show(values)
        return values

    cli.run_job(job, args.json)
