"""`stagecraft try 345m --set optimizer.lr=1e-4,3e-4`: a small search, one ordinary run a point."""  # noqa: N999

import argparse
import hashlib

from commands import cli
from recipes.axes import axes, draws, grid
from recipes.registry import load


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser("Try values of a recipe's fields, one run after another. The same command again goes on.")
    parser.add_argument("recipe", help="its name, for example 345m; stagecraft recipes lists them")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.FIELD=VALUE,VALUE",
        help="values by commas; a field whose values hold commas (a blend, betas) is given once for each value; with "
        "--random also a range, for example optimizer.lr=1e-4..1e-2",
    )
    parser.add_argument(
        "--deepspeed_config", nargs="+", default=[], metavar="JSON", help="one DeepSpeed JSON, or several to try"
    )
    parser.add_argument("--random", type=int, metavar="N", help="draw N points instead of all combinations")
    parser.add_argument("--name", help="of the search and its runs; by default made of what is tried")
    parser.add_argument("--max-steps", type=int, help="stop each run after this step; the schedule stays the recipe's")
    parser.add_argument("--processes", type=int, help="processes on this machine, as for pretrain")
    parser.add_argument("--hostfile", help="start on the hosts of this file, as for pretrain")
    parser.add_argument("--table", action="store_true", help="show what was found so far, and run nothing")
    parser.add_argument("--json", action="store_true", help="print the table as JSON, progress on standard error")
    return parser


def main() -> None:
    args = parser().parse_args()

    def job() -> object:
        from launch.trials import Search, check_end, search
        from run import trials
        from run.trials_show import show

        recipe, configs = load(args.recipe), list(dict.fromkeys(args.deepspeed_config))
        fields = axes(recipe, args.settings)
        tried = recipe.name, sorted((axis.field, sorted(axis.values)) for axis in fields), sorted(configs)
        code = hashlib.sha256(repr(tried).encode()).hexdigest()[:6]
        folder = trials.folder(recipe.name, args.name or f"try-{code}")
        if not args.table:
            drawn = args.random is not None
            points = draws(fields, configs, args.random, recipe.seed) if drawn else grid(fields, configs)
            search(Search(recipe, folder, points, args.max_steps, args.processes, args.hostfile))
        values = trials.table(folder)
        trials.plot(folder)
        if not args.json:
            show(values)
        if not args.table:
            check_end(values)
        return values

    cli.run_job(job, args.json)
