"""List the recipes: `python -m recipes`."""

import json

from commands import cli
from recipes.registry import load, names
from support.terminal import print_table


def short(number: float) -> str:
    """A count in millions or billions."""
    return f"{number / 1e9:,.1f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"


def main() -> None:
    parser = cli.Parser("List the recipes.")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()
    recipes = [load(name) for name in names()]
    if args.json:
        print(json.dumps([{"name": r.name, "parameters": r.model.num_parameters, "status": r.status} for r in recipes]))
        return
    from rich.table import Table

    table = Table(
        "recipe",
        "parameters",
        "layers x hidden x heads",
        "sequence",
        "batch",
        "tokens",
        "GPUs",
        "tp x pp x dp",
        "status",
    )
    for r in recipes:
        gpus = r.cluster.world_size
        table.add_row(
            r.name,
            short(r.model.num_parameters),
            f"{r.model.num_layers} x {r.model.hidden_size:,} x {r.model.num_attention_heads}",
            f"{r.model.seq_length:,}",
            f"{r.batch.global_batch:,}",
            f"{r.schedule.train_tokens / 1e9:,.0f} B"
            if r.schedule.train_tokens >= 1e9
            else f"{r.schedule.train_tokens / 1e6:,.1f} M",
            f"{gpus:,} {r.cluster.gpu}",
            f"{r.layout.tp} x {r.layout.pp} x {r.layout.data_degree(gpus)}",
            r.status.partition(":")[0],
        )
    print_table(table)
