"""List the recipes: `python -m recipes`."""

from commands import cli
from recipes.recipe import Recipe
from recipes.registry import load, names
from support.json_object import JsonObject
from support.terminal import print_table


def short(number: float) -> str:
    """A count in millions or billions."""
    return f"{number / 1e9:,.1f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"


def described(recipe: Recipe) -> JsonObject:
    """A line of the list."""
    model, layout, gpus = recipe.model, recipe.layout, recipe.cluster.world_size
    return {
        "name": recipe.name,
        "parameters": model.num_parameters,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "seq_length": model.seq_length,
        "global_batch": recipe.batch.global_batch,
        "train_tokens": recipe.schedule.train_tokens,
        "gpu": recipe.cluster.gpu,
        "world_size": gpus,
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.data_degree(gpus),
        "status": recipe.status,
    }


def show(recipes: list[JsonObject]) -> None:
    """Print the list."""
    from rich.table import Table

    shape = "layers x hidden x heads"
    table = Table("recipe", "parameters", shape, "sequence", "batch", "tokens", "GPUs", "tp x pp x dp", "status")
    for r in recipes:
        tokens = r["train_tokens"]
        table.add_row(
            r["name"],
            short(r["parameters"]),
            f"{r['num_layers']} x {r['hidden_size']:,} x {r['num_attention_heads']}",
            f"{r['seq_length']:,}",
            f"{r['global_batch']:,}",
            f"{tokens / 1e9:,.0f} B" if tokens >= 1e9 else f"{tokens / 1e6:,.1f} M",
            f"{r['world_size']:,} {r['gpu']}",
            f"{r['tp']} x {r['pp']} x {r['dp']}",
            r["status"].partition(":")[0],
        )
    print_table(table)


def main() -> None:
    parser = cli.Parser("List the recipes.")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        recipes = [described(load(name)) for name in names()]
        if not args.json:
            show(recipes)
        return recipes

    cli.run_job(job, args.json)
