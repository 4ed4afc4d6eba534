"""The flags of `evaluate` that say which tasks to run and how the model is loaded for them."""

import argparse
import sys
from pathlib import Path

from inference.named import model_of
from inference.ranks import PRECISIONS, Loading, leads, started
from inference.tasks import harness
from inference.tasks.find import Asked
from support.errors import UserError
from support.json_object import JsonObject
from training import evaluated

FLAGS = ("shots", "limit", "task_folder", "overlap", "tensor", "pipeline", "precision")
OTHERS = ("protocol", "stride", "pseudo_tokens")


def add(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument("--tasks", metavar="A,B", help="tasks of lm-eval to run instead: ours, a folder's or the hub's")
    parser.add_argument("--shots", type=int, metavar="N", help="examples in front of each document of a task")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first documents of each task")
    parser.add_argument("--task-folder", type=Path, metavar="DIR", help="where YAML files of further tasks lie")
    parser.add_argument(
        "--overlap", action="store_true", default=None, help="with --tasks: what they share with the data of the run"
    )
    for flag, what in (("--tensor", "tensor ranks"), ("--pipeline", "pipeline stages")):
        parser.add_argument(flag, type=int, metavar="N", help=f"with --tasks: {what} of a run's model, under torchrun")
    parser.add_argument("--precision", choices=PRECISIONS, help="with --tasks: of weights and activations; else fp32")


def check(args: argparse.Namespace) -> None:
    """Errors: `UserError` for a flag that does not go with the others."""
    wrong, rule = (FLAGS, "goes with --tasks") if args.tasks is None else (OTHERS, "does not go with --tasks")
    if given := next((flag for flag in wrong if getattr(args, flag) is not None), None):
        raise UserError(f"--{given.replace('_', '-')} {rule}; leave it out")


def run(args: argparse.Namespace) -> JsonObject:
    """Run the tasks, and keep the scores beside the other numbers of the run. Collective. Errors: `UserError`."""
    asked = Asked(
        tuple(name.strip() for name in args.tasks.split(",")),
        args.shots,
        args.limit,
        args.task_folder,
        bool(args.overlap),
    )
    loading = Loading(args.checkpoint, args.tensor or 1, args.pipeline or 1, args.precision or PRECISIONS[0])
    values = harness.evaluate(model_of(args.run), asked, loading.over(started()))
    if leads():
        evaluated.add(values, lambda line: print(line, file=sys.stderr))
        if not args.json:
            harness.show(values)
    return values
