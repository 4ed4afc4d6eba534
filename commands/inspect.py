"""Look at prepared data: `stagecraft inspect tiny`, or a run's directory, or prepared folders."""

import sys
from contextlib import suppress
from pathlib import Path

from commands import cli
from data.inspect import SEED, SEQ_LENGTH, Inspected, check_same_tokeniser, describe, print_description
from recipes.registry import load
from recipes.settings import override
from run import select
from run.directory import read_data, read_recipe
from support.errors import UserError


def find(given: list[str], settings: list[str]) -> Inspected:
    """The data of a recipe (made where it is missing), of a run, or of one or more prepared folders.

    Folders weigh as many tokens as they hold. Errors: `UserError` where it is none of these, or folders do not go
    together.
    """
    from data.samples import blend, mixture
    from data.tokens import prepare
    from run.prepared import recipe_data

    paths = [Path(name) for name in given]
    if settings and paths[0].exists():
        raise UserError("--set goes with a recipe, not with a run or prepared folders")
    if len(given) == 1 and (paths[0] / "data.json").is_file():
        return _of_run(paths[0])
    if len(given) == 1 and not paths[0].exists():
        try:
            recipe = override(load(given[0]), settings)
        except UserError as error:
            with suppress(UserError):
                return _of_run(select.find(given[0]))
            raise UserError(f"{given[0]} is no prepared folder, no run and no recipe: {error}") from None
        return Inspected(recipe_data(recipe, _note), recipe.model.seq_length, recipe.seed)
    sizes = [prepare.manifest(path)["train"]["tokens"] for path in paths]
    check_same_tokeniser(paths)
    parts = [
        mixture.PreparedPart(str(prepare.manifest(path)["source"]["corpus"]), path, share)
        for path, share in zip(paths, blend.shares(sizes), strict=True)
    ]
    return Inspected(mixture.Mixture(parts), SEQ_LENGTH, SEED)


def _of_run(path: Path) -> Inspected:
    from data.samples import mixture

    recipe = read_recipe(path)
    return Inspected(mixture.reopened(read_data(path)), recipe.model.seq_length, recipe.seed)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    parser = cli.Parser(
        "Look at prepared data: its parts beside the blend's weights, the lengths of documents, the most frequent "
        "tokens, some documents, and the first batch as a run reads it, with the ends of documents marked."
    )
    parser.add_argument("data", nargs="+", help="a recipe, a run by directory or name, or one or more prepared folders")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--show", type=int, default=4, metavar="N", help="documents and samples to show")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> object:
        if args.show < 1:
            raise UserError(f"--show is {args.show}; it must be at least 1")
        values = describe(find(args.data, args.settings), args.show)
        if not args.json:
            print_description(values)
        return values

    cli.run_job(job, args.json)
