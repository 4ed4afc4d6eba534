"""`stagecraft generate --prompt "KING HENRY"`: write text with a run."""

import os
import sys
from pathlib import Path

from commands import cli
from inference.generate import DEFAULT_NEW_TOKENS, Sampling, generate
from run import checkpoints
from run.select import HELP, find
from support.errors import UserError
from support.json_object import JsonObject


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt: the flag's, a file's, or standard input's where something is piped in; else empty."""
    where = "--prompt" if text is not None else f"prompt file {file}" if file else "standard input"
    if file and not file.exists():
        raise UserError(f"{where} does not exist; give the path of a text file")
    try:
        if text is not None:
            return os.fsencode(text).decode()  # what is not UTF-8 reaches us as halves of surrogate pairs
        if file:
            return file.read_text(encoding="utf-8")
        return "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}; convert it") from None


def main() -> None:
    parser = cli.Parser("Write text with a run or an exported folder, through transformers' generate.")
    parser.add_argument("--run", help=f"{HELP}; or an exported folder")
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to go on from; by default standard input")
    source.add_argument("--file", type=Path, help="file that holds the prompt")
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"tokens to write; by default {DEFAULT_NEW_TOKENS}, or what fits"
    )
    usual = Sampling()
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument(
        "--temperature", type=float, default=usual.temperature, help="flattens (above 1) or sharpens the odds"
    )
    parser.add_argument("--top-k", type=int, default=usual.top_k, help="draw from the k likeliest tokens; 0 is off")
    parser.add_argument(
        "--top-p", type=float, default=usual.top_p, help="draw from the likeliest tokens of this total odds"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=usual.repetition_penalty,
        help="above 1 makes written tokens less likely",
    )
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument(
        "--samples", type=int, default=usual.samples, help="how many texts to write, each with the next seed"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON instead of streaming")
    args = parser.parse_args()

    def job() -> JsonObject:
        odds = (args.greedy, args.temperature, args.top_k, args.top_p, args.repetition_penalty)
        sampling = Sampling(*odds, args.seed, args.samples, args.max_new_tokens)
        prompt = read_prompt(args.prompt, args.file)
        return generate(find(args.run), prompt, sampling, not args.json, args.checkpoint)

    cli.run_job(job, args.json)
