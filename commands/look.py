"""`stagecraft look --prompt "KING HENRY"`: attention, losses and logit lens of a text, as one HTML page."""

from pathlib import Path

from commands import cli
from inference.look.look import look_into, show
from inference.named import HELP, model_of
from inference.prompts import read_prompt
from run import checkpoints
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Attention, the loss of each token and the logit lens of a text, as one HTML page.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text; by default standard input")
    source.add_argument("--file", type=Path, help="file that holds the text")
    parser.add_argument("--out", type=Path, help="the page; by default look.html in the run directory, or here")
    parser.add_argument(
        "--special-tokens", action="store_true", help="names of special tokens in the text are these tokens"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        prompt = read_prompt(args.prompt, args.file)
        values = look_into(model_of(args.run), prompt, args.out, args.checkpoint, args.special_tokens)
        if not args.json:
            show(values)
        return values

    cli.run_job(job, args.json)
