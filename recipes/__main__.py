"""List the recipes: `python -m recipes`."""

import json

from recipes import cli
from recipes.recipe import load, names


def main() -> None:
    parser = cli.Parser("List the recipes.")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()
    recipes = [load(name) for name in names()]
    if args.json:
        print(json.dumps([{"name": r.name, "parameters": r.model.num_parameters, "status": r.status} for r in recipes]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "parameters", "layers", "hidden", "heads", "sequence", "batch", "tokens", "status")
    for r in recipes:
        shape = (r.model.num_layers, r.model.hidden_size, r.model.num_attention_heads, r.model.seq_length)
        table.add_row(
            r.name,
            f"{r.model.num_parameters / 1e6:,.1f} M",
            *(f"{n:,}" for n in (*shape, r.batch.global_batch)),
            f"{r.schedule.train_tokens / 1e9:,.4g} B",
            r.status.partition(":")[0],
        )
    Console().print(table)


if __name__ == "__main__":
    main()
