"""A comparison of runs as a table, one column a run."""

from collections.abc import Callable, Sequence

from support.json_object import JsonObject
from support.terminal import print_table

ABSENT = "-"


def show(values: JsonObject) -> None:
    """Print what `run.compare.compare` returns, and below it what one must know to read it."""
    from rich.table import Table

    runs = values["runs"]
    table = Table(title="runs beside each other")
    table.add_column("")
    for run in runs:
        table.add_column(run["name"], overflow="fold")
    for row in (*_facts(runs), *_losses(values["equal"], not values["same_tokeniser"])):
        table.add_row(*row)
    table.add_section()
    for each in values["differences"]:
        table.add_row(f"{each['of']}: {each['name']}", *map(_text, each["values"]))
    print_table(table)
    if not values["differences"]:
        print("no difference in recipe, JSON, versions or data")
    for line in values["remarks"]:
        print(line)


def _facts(runs: Sequence[JsonObject]) -> list[list[str]]:
    rows: dict[str, tuple[str, Callable[[float], str]]] = {
        "steps": ("step", "{:,}".format),
        "tokens": ("tokens", "{:,}".format),
        "training": ("seconds", duration),
        "tokens/s": ("tokens_per_second", "{:,.0f}".format),
        "speed ratio": ("speed_ratio", "{:.3f}".format),
        "validation loss at the end": ("final_validation_loss", "{:.4f}".format),
        "bits a byte at the end": ("final_bits_per_byte", "{:.4f}".format),
    }
    lines = [[name, *(number(run[key], form) for run in runs)] for name, (key, form) in rows.items()]
    return [["recipe", *(run["recipe"] for run in runs)], ["state", *(run["state"] for run in runs)], *lines]


def _losses(equal: Sequence[JsonObject], with_bits: bool) -> list[list[str]]:
    lines = []
    for each in equal:
        place = f"{each['at']:,.0f} tokens" if each["by"] == "tokens" else duration(each["at"])
        lines.append([f"{each['of']} loss at {place}", *(number(loss, "{:.4f}".format) for loss in each["losses"])])
        if with_bits:
            lines.append(["  bits a byte", *(number(bits, "{:.4f}".format) for bits in each["bits_per_byte"])])
    return lines


def number(value: float | None, form: Callable[[float], str]) -> str:
    """A number, or a dash where there is none."""
    return ABSENT if value is None else form(value)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 600:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 36000 else f"{seconds / 3600:,.1f} h"


def _text(value: object) -> str:
    if value is None:
        return ABSENT
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
