"""`stagecraft generate --prompt "KING HENRY"`: write text with a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from commands import cli
from inference.generate import DEFAULT_NEW_TOKENS, generate

if TYPE_CHECKING:
    pass


def main() -> None:
    parser = cli.Parser("Write text with a run or an exported folder, through transformers' generate.")
    parser.add_argument("--run", type=Path, help="run directory or exported folder; by default the newest run")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to go on from; by default standard input")
    source.add_argument("--file", type=Path, help="file that holds the prompt")
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"tokens to write; by default {DEFAULT_NEW_TOKENS}, or what fits"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=float, default=0.8, help="flattens (above 1) or sharpens the odds")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k likeliest tokens; 0 is off")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this total odds")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1 makes written tokens less likely"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1, help="how many texts to write, each with the next seed")
    parser.add_argument("--json", action="store_true", help="print as JSON instead of streaming")
    args = parser.parse_args()
    cli.run_job(lambda: generate(args), args.json)
