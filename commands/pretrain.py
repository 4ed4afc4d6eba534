"""Train a recipe: `python -m recipes.gpt_tiny` starts the ranks, `deepspeed --module recipes.gpt_tiny` is one."""

import atexit
import os
import sys
from typing import NoReturn

from commands import cli
from launch import local
from planner import planning
from planner.show import show
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run.directory import Request, plan_run
from run.prepared import run_data
from support.errors import CRASHED


def main(recipe: Recipe) -> None:
    """Run a recipe from the command line, as a rank where a launcher started this process, else as the launcher."""
    parser = cli.Parser(
        f"Train {recipe.name} under the deepspeed launcher: as many GPUs as there are, else CPU processes."
    )
    parser.add_argument("--deepspeed_config", metavar="JSON", help=f"DeepSpeed JSON; the recipe's is {recipe.engine}")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override fields of the recipe, for example model.num_layers=2",
    )
    parser.add_argument("--max-steps", type=int, help="stop after this step; the schedule stays the recipe's")
    parser.add_argument("--run-dir", help="directory of the run; by default runs/<recipe>/<time>")
    parser.add_argument("--resume", action="store_true", help="go on with --run-dir, or with this recipe's newest run")
    parser.add_argument("--seed", type=int, help="seed of weights, data order and dropout")
    parser.add_argument(
        "--processes",
        type=int,
        help="processes on this machine; by default its GPUs, as many as were planned for, else 2",
    )
    parser.add_argument("--hostfile", help="start on the hosts of this file, through the deepspeed launcher")
    parser.add_argument("--local_rank", type=int, help="set by the deepspeed launcher")
    args = parser.parse_args()
    request = Request(args.deepspeed_config, tuple(args.settings), args.max_steps, args.run_dir, args.resume, args.seed)
    if "RANK" in os.environ:
        from training import train

        cli.run_job(lambda: train.train(recipe, request))
        _leave()
    else:
        cli.run_job(lambda: launch(recipe, request, args.processes, args.hostfile))


def _leave() -> NoReturn:
    """End a rank whose work is done, past C++'s own clearing up: gloo's threads now and then abort a process in it."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def launch(recipe: Recipe, request: Request, processes: int | None, hostfile: str | None) -> None:
    """Check everything that can be checked, then start the ranks and see that they finish."""
    world = local.world_size(hostfile, processes, recipe.cluster.world_size)
    if not request.resume and not request.settings and world < recipe.layout.ranks_per_replica:
        machine = planning.cluster_machine(recipe.cluster)
        show(planning.plan(recipe, ROOT / recipe.engine, recipe.cluster.world_size, machine))
    run = plan_run(recipe, request, world)
    arguments = ["--run-dir", str(run.path)]
    arguments += ["--deepspeed_config", request.deepspeed_config] if request.deepspeed_config else []
    arguments += ["--set", *request.settings] if request.settings else []
    arguments += ["--max-steps", str(request.max_steps)] if request.max_steps is not None else []
    arguments += ["--seed", str(request.seed)] if request.seed is not None else []
    arguments += ["--resume"] if run.resume else []
    if hostfile:
        local.check_remote(arguments)
    run_data(run, print)
    report = run.path / "report.json"
    before = report.stat().st_mtime_ns if report.exists() else 0
    command = local.deepspeed_command(f"recipes.{recipe.name}", arguments, world, hostfile)
    status = local.run(command, local.environment(world))
    if status:
        raise SystemExit(status)
    if not report.exists() or report.stat().st_mtime_ns == before:
        cli.fail(f"the launcher ended but the run did not finish; go on with --resume --run-dir {run.path}", CRASHED)
