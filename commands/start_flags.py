"""What a command line says of a start: what is trained, as which run, where, and how it is looked after."""

import argparse

from run.request import RESUME, Request


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a start."""
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
    parser.add_argument("--hostfile", help="start on the hosts of this file, by ssh")
    parser.add_argument("--cluster", metavar="NAME|FILE", help="where to train; stagecraft clusters lists them")
    parser.add_argument("--nodes", type=int, help="of the cluster; by default as its file or the recipe says")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be started or submitted, and do nothing"
    )
    parser.add_argument("--restarts", type=int, default=3, help="how often in a row to go on by itself after a crash")
    parser.add_argument("--hang-seconds", type=float, help="what a step may take, before the run counts as hung")
    parser.add_argument("--notify", metavar="COMMAND", help="gets each fault, restart and end as JSON on its input")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by launchers; not needed")


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments; "--resume tiny" means "--resume=must tiny"."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    return parser.parse_args([f"{a}={RESUME[0]}" if a == "--resume" and b not in RESUME else a for a, b in pairs])


def request(args: argparse.Namespace) -> Request:
    """What is trained, and as which run."""
    where = (args.run_dir, args.resume == "must", args.seed, args.name, args.branch)
    how = (*where, args.resume == "auto", args.allow_change)
    return Request(args.deepspeed_config, tuple(args.settings), args.max_steps, *how)
