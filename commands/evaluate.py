"""`stagecraft evaluate --data my.txt`: loss, perplexity and bits per byte of a run."""

from pathlib import Path

from commands import cli
from inference.evaluate import evaluate, show
from run.directory import newest
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Loss, perplexity and bits per byte of a run's newest checkpoint on any text or shard.")
    parser.add_argument("--run", type=Path, help="run directory; by default the newest")
    parser.add_argument(
        "--data", default="validation", help="validation, a corpus, a prepared folder's FOLDER/test, or a shard"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        values = evaluate(args.run or newest(), args.data)
        if not args.json:
            show(values)
        return values

    cli.run_job(job, args.json)
