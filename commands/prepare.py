"""Prepare a recipe's data: `stagecraft prepare tiny`, or list the corpora: `stagecraft prepare --corpora`."""

import sys

from commands import cli
from data.corpus.named import CORPORA
from data.tokens import prepare
from data.tokens.encode import ENGINES
from inference import teach
from launch.clusters.data import prepared_there
from recipes.registry import load
from recipes.settings import override
from run.prepared import Bar, print_data
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import Say, print_table


def list_corpora(quiet: bool) -> list[JsonObject]:
    """The registry; printed unless `quiet`."""
    known = [corpus.described for corpus in CORPORA.values()]
    if quiet:
        return known
    from rich.table import Column, Table

    table = Table(Column("corpus", no_wrap=True), "what", "from", "GB", "licence", "fixed by")
    for entry in known:
        what = f"{entry['what']}. {entry['gone']}" if entry["gone"] else entry["what"]
        size = "?" if entry["size_gb"] is None else f"{entry['size_gb']:.3g}"
        table.add_row(entry["name"], what, entry["from"], size, entry["licence"], entry["fixed_by"])
    print_table(table)
    return known


def main() -> None:
    parser = cli.Parser(
        "Fetch, clean, tokenise and pack a recipe's data into shards below runs/data; a no-op when it is there. After "
        "an interruption the same command goes on where it was."
    )
    parser.add_argument("recipe", nargs="?", help="for example gpt_tiny, or tiny")
    parser.add_argument("--corpora", action="store_true", help="list the corpora known by name, and end")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--workers", type=int, default=0, help="processes that tokenise; 0 is one a core")
    parser.add_argument("--cluster", metavar="NAME|FILE", help="where to do it; stagecraft clusters lists them")
    parser.add_argument("--dry-run", action="store_true", help="with --cluster: show what would be done, do nothing")
    parser.add_argument("--nodes", type=int, default=1, help="machines that share the work, without a coordinator")
    parser.add_argument("--node", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="for input that cannot be read")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="what encodes")
    parser.add_argument("--json", action="store_true", help="print the manifest, or the corpora, as JSON")
    args = parser.parse_args()

    def job() -> object:
        if args.corpora:
            return list_corpora(args.json)
        if not args.recipe:
            raise UserError("name a recipe, for example gpt_tiny, or give --corpora to see what there is to prepare")
        recipe = override(load(args.recipe), args.settings)
        if args.cluster is not None or args.dry_run:
            flags = {name: getattr(args, name) for name in ("workers", "on_error", "engine", "node")}
            if there := prepared_there(recipe.name, flags, args.settings, args.cluster, args.nodes, args.dry_run):
                return there
        say: Say = (lambda line: None) if args.json else print
        bar, skip = Bar(say, live=sys.stdout.isatty()), args.on_error == "skip"
        report = None if args.json else bar
        options = prepare.Options(args.workers, args.nodes, args.node, skip, args.engine, report=report)
        try:
            described = teach.recipe_data(recipe, say, options, bar.stop).described
        except prepare.OthersUnfinished as state:
            print(state)
            return {"unfinished": str(state)}
        finally:
            bar.stop()
        if args.json:
            return described
        print_data(described["parts"], recipe.schedule.train_tokens)
        return described

    cli.run_job(job, args.json)
