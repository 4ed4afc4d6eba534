"""Prepare a recipe's data: `python -m recipes.prepare gpt_tiny`."""

import json
from collections.abc import Callable
from pathlib import Path

from data import prepare
from recipes import cli
from recipes.recipe import Recipe, load, override
from recipes.run import Run, runs_root

Say = Callable[[str], None]


def recipe_data(recipe: Recipe, say: Say) -> Path:
    """The prepared data of a recipe, made now where it is missing."""
    data = recipe.data
    reserved = 1 if recipe.model.objective == "masked" else 0  # the last entry of the vocabulary is the mask token
    room = recipe.model.vocab_size - reserved
    folder = prepare.prepare(data.corpus, data.tokeniser, room, runs_root() / "data", say)
    prepare.check(folder)
    return folder


def run_data(run: Run, say: Say) -> Path:
    """The data of a run; a resumed run gets the very shards it began with. Errors: `ValueError` where they changed."""
    stored = run.path / "data.json"
    if not run.resume or not stored.exists():
        return recipe_data(run.recipe, say)
    began_with = json.loads(stored.read_text())
    folder = Path(began_with["folder"])
    if not (folder / "manifest.json").exists():
        folder = recipe_data(run.recipe, say)
    prepare.check(folder, expected=began_with)
    return folder


def main() -> None:
    parser = cli.Parser(
        "Fetch, tokenise and pack a recipe's data into shards below runs/data; a no-op when it is there."
    )
    parser.add_argument("recipe", help="for example gpt_tiny, or tiny")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    args = parser.parse_args()

    def job() -> None:
        folder = recipe_data(override(load(args.recipe), args.settings), (lambda line: None) if args.json else print)
        described = prepare.manifest(folder)
        if args.json:
            print(json.dumps({"folder": str(folder), **described}))
            return
        for part in prepare.SPLITS:
            facts = described[part]
            print(
                f"{part:10s} {facts['documents']:,} documents, {facts['bytes'] / 1e6:,.2f} MB, "
                f"{facts['tokens']:,} tokens ({facts['bytes'] / facts['tokens']:.2f} bytes a token)"
            )
        print(f"data: {folder}")

    cli.run_job(job)


if __name__ == "__main__":
    main()
