"""A new recipe from an old one: `stagecraft new-recipe mine --from 345m`."""

from commands import cli
from recipes.registry import ROOT, load, short_name
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Copy a recipe under a name of your own, to change it.")
    parser.add_argument("name", help="of the new recipe, for example mine: the file is recipes/gpt_mine.py")
    parser.add_argument("--from", dest="source", required=True, metavar="RECIPE", help="the recipe to copy")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        from recipes.new import new_recipe

        source = load(args.source)
        path = new_recipe(args.name, source)
        short = short_name(path.stem)
        following = [f"make plan-{short}", f"make rehearse-{short}", f"make {short}"]
        if not args.json:
            print(f"wrote {path.relative_to(ROOT)}, a copy of {source.name}: change it, then")
            print("\n".join(f"  {line}" for line in following))
        return {"recipe": path.stem, "path": str(path), "from": source.name, "next": following}

    cli.run_job(job, args.json)
