"""`stagecraft evaluate --data my.txt`: loss, perplexity and bits per byte; with --tasks scores in tasks."""

import sys
from pathlib import Path

from commands import cli
from inference.evaluate import evaluate, show
from inference.named import model_of
from inference.ranks import PRECISIONS, Loading, leads, started
from inference.tasks import find as tasks
from inference.tasks import harness
from run import checkpoints
from run.select import HELP, find
from support.errors import UserError
from support.json_object import JsonObject
from training import evaluated

TASK_FLAGS = ("shots", "limit", "task_folder", "tensor", "pipeline", "precision")


def main() -> None:
    parser = cli.Parser("Loss, perplexity and bits per byte of a run on any text or shard; with --tasks scores.")
    parser.add_argument("--run", help=f"{HELP}; with --tasks also what generate takes")
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    parser.add_argument(
        "--data", default="validation", help="validation, a corpus, a prepared folder's FOLDER/test, or a shard"
    )
    parser.add_argument(
        "--tasks", metavar="A,B", help="tasks of lm-eval to run instead: our own, a folder's, the hub's"
    )
    parser.add_argument("--shots", type=int, metavar="N", help="examples in front of each document of a task")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first documents of each task")
    parser.add_argument("--task-folder", type=Path, metavar="DIR", help="where YAML files of further tasks lie")
    for flag, what in (("--tensor", "tensor ranks"), ("--pipeline", "pipeline stages")):
        parser.add_argument(flag, type=int, metavar="N", help=f"with --tasks: {what} of a run's model, under torchrun")
    parser.add_argument("--precision", choices=PRECISIONS, help="with --tasks: of weights and activations; else fp32")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        if args.tasks is None:
            if given := next((flag for flag in TASK_FLAGS if getattr(args, flag) is not None), None):
                raise UserError(f"--{given.replace('_', '-')} goes with --tasks; give that too, or leave it out")
            values = evaluate(find(args.run), args.data, args.checkpoint)
            if not args.json:
                show(values)
            return values
        asked = tasks.Asked(tuple(args.tasks.split(",")), args.shots, args.limit, args.task_folder)
        loading = Loading(args.checkpoint, args.tensor or 1, args.pipeline or 1, args.precision or PRECISIONS[0])
        values = harness.evaluate(model_of(args.run), asked, loading.over(started()))
        if leads():
            evaluated.add(values, lambda line: print(line, file=sys.stderr))
        if leads() and not args.json:
            harness.show(values)
        return values

    cli.run_job(job, args.json and leads())
