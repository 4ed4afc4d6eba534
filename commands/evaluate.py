"""`stagecraft evaluate --data my.txt`: loss, perplexity and bits per byte of a model, or with --tasks its scores."""

from commands import cli, task_flags
from inference.evaluate import evaluate, show, word_perplexity
from inference.named import HELP, model_of
from inference.ranks import leads
from run import checkpoints
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Loss, perplexity and bits per byte of a run or another causal model on any text or shard.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    parser.add_argument(
        "--data", default="validation", help="validation, a corpus, a prepared folder's FOLDER/test, or a shard"
    )
    parser.add_argument(
        "--protocol", choices=("wikitext103",), help="perplexity a word of --data, a file of WikiText, as Megatron's"
    )
    parser.add_argument("--stride", type=int, metavar="N", help="with --protocol: tokens that a window scores (32)")
    parser.add_argument(
        "--pseudo-tokens", type=int, metavar="N", help="masked models: tokens for the pseudo-perplexity (1000)"
    )
    task_flags.add(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        task_flags.check(args)
        if args.tasks is not None:
            return task_flags.run(args)
        model = model_of(args.run)
        if args.protocol:
            values = word_perplexity(model, args.data, args.checkpoint, args.stride)
        else:
            values = evaluate(model, args.data, args.checkpoint, args.pseudo_tokens)
        if not args.json:
            show(values)
        return values

    if args.stride is not None and not args.protocol:
        parser.error("--stride goes with --protocol")
    if args.protocol and (args.pseudo_tokens is not None or args.data == "validation"):
        parser.error("--protocol needs --data FILE, and no --pseudo-tokens")
    cli.run_job(job, args.json and leads())
