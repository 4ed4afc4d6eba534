"""What a search found, as a table, the best first."""

from run.compare_show import number
from support.json_object import JsonObject
from support.terminal import print_table


def show(values: JsonObject) -> None:
    """Print what `run.trials.table` returns: the settings that vary, and what came of them."""
    from rich.table import Table

    points = values["points"]
    fields = dict.fromkeys(field for point in points for field in point["settings"])
    varying = [field for field in fields if len({point["settings"].get(field) for point in points}) > 1]
    table = Table(title=f"{values['name']}: {len(points)} points")
    for name in ("run", *varying, "state", "steps", "validation loss", "bits a byte", "tokens/s"):
        table.add_column(name, justify="left" if name in ("run", *varying, "state") else "right", overflow="fold")
    for point in points:
        table.add_row(
            point["run"].rpartition("/")[2],
            *(point["settings"].get(field, "-") for field in varying),
            point["state"],
            f"{point['step']:,}",
            number(point["validation_loss"], "{:.4f}".format),
            number(point["bits_per_byte"], "{:.4f}".format),
            number(point["tokens_per_second"], "{:,.0f}".format),
        )
    print_table(table)
    for point in points:
        if point["reason"]:
            print(f"{point['run'].rpartition('/')[2]}: {point['reason']}")
    for line in values["remarks"]:
        print(line)
    if values["picture"]:
        print(f"picture: {values['picture']}")
