"""`stagecraft pretrain 345m`: train a recipe. Under another launcher `recipes/gpt_345m.py` is one rank of it."""

import signal
import sys
from pathlib import Path

from commands import cli, start_flags
from recipes.registry import load
from support.terminal import lasting_output
from training import launchers, stop


def main(file: str | None = None) -> None:
    """Train a recipe: as a rank where another launcher started this process, else as the launcher.

    `file` is the recipe's, where it was started itself; else the first argument names the recipe.
    """
    parser = cli.Parser(
        f"Train {Path(file).stem if file else 'a recipe'} under the deepspeed launcher: as many GPUs as there are, "
        "else CPU processes. With --cluster on the nodes of a cluster."
    )
    if file is None:
        parser.add_argument("recipe", help="its name, for example 345m; stagecraft recipes lists them")
    start_flags.add(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, progress on standard error")
    args = start_flags.parsed(parser, sys.argv[1:])
    name = Path(file).stem if file else args.recipe
    request = start_flags.request(args)
    if file is not None and launchers.is_rank():
        from commands.rank import be_rank

        def as_rank() -> None:
            from launch.base import with_base

            recipe = load(name)
            # Nothing is begun yet. A rank that waits for another one's import ends where that failed or was killed.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            based = with_base(recipe, request)
            stop.listen()
            from training import train

            train.train_alone(recipe, based)

        be_rank(as_rank)
    else:

        def job() -> object:
            from launch.care import Care
            from launch.clusters.asked import Where
            from launch.clusters.begin import begin

            where = Where(args.cluster, args.nodes, args.dry_run, args.processes, args.hostfile)
            return begin(load(name), request, where, Care(args.restarts, args.hang_seconds, args.notify))

        with lasting_output():
            cli.run_job(job, args.json)
