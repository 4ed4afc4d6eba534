"""Prepare a recipe's data: `python -m recipes.prepare gpt_tiny`."""

import json
from collections.abc import Callable
from pathlib import Path

from data import blend, mixture, prepare
from data.mixture import Mixture, PreparedPart
from recipes import cli
from recipes.recipe import Recipe, load, override
from recipes.run import Run, runs_root

Say = Callable[[str], None]


def recipe_data(recipe: Recipe, say: Say) -> Mixture:
    """The prepared data of a recipe, made now where it is missing."""
    data, root = recipe.data, runs_root() / "data"
    reserved = 1 if recipe.model.objective == "masked" else 0  # the last entry of the vocabulary is the mask token
    room = recipe.model.vocab_size - reserved
    corpora = list(dict.fromkeys(part.corpus for part in data.parts))
    tokeniser = prepare.shared_tokeniser(corpora, data.tokeniser, root, say)
    made = {corpus: prepare.prepare(corpus, tokeniser, room, root, say) for corpus in corpora}
    folders = [made[part.corpus] for part in data.parts]
    weights = [part.weight for part in data.parts]
    if not any(weights):
        sizes = [prepare.manifest(folder)["train"]["tokens"] for folder in folders]
        weights = [size ** (1 / data.temperature) for size in sizes]
    shares = blend.shares(weights)
    return Mixture([PreparedPart(p.corpus, f, s) for p, f, s in zip(data.parts, folders, shares, strict=True)])


def run_data(run: Run, say: Say) -> Mixture:
    """The data of a run; a resumed run gets the very shards it began with. Errors: `ValueError` where they changed."""
    stored = run.path / "data.json"
    if not run.resume or not stored.exists():
        return recipe_data(run.recipe, say)
    began_with = json.loads(stored.read_text())
    if all(Path(part["folder"], "manifest.json").exists() for part in began_with["parts"]):
        return mixture.reopened(began_with)
    return Mixture(recipe_data(run.recipe, say).parts, began_with)


def main() -> None:
    parser = cli.Parser(
        "Fetch, tokenise and pack a recipe's data into shards below runs/data; a no-op when it is there."
    )
    parser.add_argument("recipe", help="for example gpt_tiny, or tiny")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    args = parser.parse_args()

    def job() -> None:
        recipe = override(load(args.recipe), args.settings)
        described = recipe_data(recipe, (lambda line: None) if args.json else print).described
        if args.json:
            print(json.dumps(described))
            return
        total = sum(part["share"] for part in described["parts"])
        for part in described["parts"]:
            for split in prepare.SPLITS:
                facts = part[split]
                print(
                    f"{split:10s} {facts['documents']:,} documents, {facts['bytes'] / 1e6:,.2f} MB, "
                    f"{facts['tokens']:,} tokens ({facts['bytes'] / facts['tokens']:.2f} bytes a token)"
                )
            share = part["share"] / total
            epochs = share * recipe.schedule.train_tokens / part["train"]["tokens"]
            print(f"data: {part['folder']} ({share:.3%} of the samples, {epochs:,.2f} epochs in the token budget)")

    cli.run_job(job)


if __name__ == "__main__":
    main()
