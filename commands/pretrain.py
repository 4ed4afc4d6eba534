"""`stagecraft pretrain 345m`: train a recipe. Under another launcher `recipes/gpt_345m.py` is one rank of it."""

import os
import sys
from pathlib import Path

from commands import cli
from recipes.registry import load
from run.request import RESUME, Request, settled
from support.terminal import lasting_output


def main(file: str | None = None) -> None:
    """Train a recipe: as a rank where another launcher started this process, else as the launcher.

    `file` is the recipe's, where it was started itself; else the first argument names the recipe.
    """
    parser = cli.Parser(
        f"Train {Path(file).stem if file else 'a recipe'} under the deepspeed launcher: as many GPUs as there are, "
        "else CPU processes."
    )
    if file is None:
        parser.add_argument("recipe", help="its name, for example 345m; stagecraft recipes lists them")
    parser.add_argument("--deepspeed", action="store_true", help="as in other scripts: here DeepSpeed always trains")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON; by default the recipe's")
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
    parser.add_argument(
        "--resume",
        nargs="?",
        choices=RESUME,
        const=RESUME[0],
        help="go on with --run-dir, or with this recipe's newest run; auto: begin one where there is none",
    )
    parser.add_argument("--allow-change", action="store_true", help="let --resume change what the run computes")
    parser.add_argument("--name", help="a name for the new run; other commands take it with --run")
    parser.add_argument("--from", dest="branch", metavar="RUN[@STEP]", help="begin a branch of a run at a checkpoint")
    parser.add_argument("--seed", type=int, help="seed of weights, data order and dropout")
    parser.add_argument("--processes", type=int, help="ranks; by default the GPUs here, at most those planned, else 2")
    parser.add_argument("--hostfile", help="start on the hosts of this file, through the deepspeed launcher")
    parser.add_argument("--restarts", type=int, default=3, help="how often in a row to go on by itself after a crash")
    parser.add_argument("--hang-seconds", type=float, help="what a step may take, before the run counts as hung")
    parser.add_argument("--notify", metavar="COMMAND", help="gets each fault, restart and end as JSON on its input")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, progress on standard error")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by launchers; not needed")
    words = zip(sys.argv[1:], [*sys.argv[2:], ""], strict=False)  # "--resume tiny" means "--resume=must tiny"
    args = parser.parse_args([f"{a}={RESUME[0]}" if a == "--resume" and b not in RESUME else a for a, b in words])
    name = Path(file).stem if file else args.recipe
    where = (args.run_dir, args.resume == "must", args.seed, args.name, args.branch)
    how = (*where, args.resume == "auto", args.allow_change)
    request = Request(args.deepspeed_config, tuple(args.settings), args.max_steps, *how)
    if "RANK" in os.environ and file is not None:
        from commands.rank import be_rank

        def as_rank() -> None:
            from training import train

            train.train_alone(load(name), request)

        be_rank(as_rank)
    else:

        def job() -> object:
            from launch.care import Care
            from launch.start import start

            care, recipe = Care(args.restarts, args.hang_seconds, args.notify), load(name)
            return start(recipe, settled(recipe, request), args.processes, args.hostfile, care)

        with lasting_output():
            cli.run_job(job, args.json)
