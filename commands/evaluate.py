"""`stagecraft evaluate --data my.txt`: loss, perplexity and bits per byte of a run."""

from commands import cli
from inference.evaluate import evaluate, show
from run import checkpoints
from run.select import HELP, find
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Loss, perplexity and bits per byte of a run on any text or shard.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    parser.add_argument(
        "--data", default="validation", help="validation, a corpus, a prepared folder's FOLDER/test, or a shard"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        values = evaluate(find(args.run), args.data, args.checkpoint)
        if not args.json:
            show(values)
        return values

    cli.run_job(job, args.json)
