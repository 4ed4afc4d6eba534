"""`stagecraft generate --prompt "KING HENRY"`: write text with a run."""

import os
import sys
from pathlib import Path

from commands import cli, sampling_flags
from inference.generate import generate
from inference.named import HELP, model_of
from inference.prompts import write_all
from inference.ranks import leads, started
from run import checkpoints
from support.errors import UserError
from support.json_object import JsonObject


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt: the flag's, a file's, or standard input's where something is piped in; else empty."""
    where = "--prompt" if text is not None else f"--file {file}" if file else "standard input"
    if file and (file.is_dir() or not file.exists()):
        wrong = "is a directory" if file.is_dir() else "does not exist"
        raise UserError(f"--file {file} {wrong}; give the path of a text file")
    try:
        if text is not None:
            return os.fsencode(text).decode()  # what is not UTF-8 reaches us as halves of surrogate pairs
        if file:
            return file.read_text(encoding="utf-8")
        return "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}; convert it") from None


def main() -> None:
    parser = cli.Parser("Write text with a run, or through transformers with the folder of any causal model.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to go on from; by default standard input")
    source.add_argument("--file", type=Path, help="file that holds the prompt")
    source.add_argument(
        "--prompts", type=Path, metavar="FILE", help='prompts, one a line; .jsonl: objects with "prompt"'
    )
    parser.add_argument("--out", type=Path, help="with --prompts: JSON lines; what stands there is not done again")
    parser.add_argument(
        "--special-tokens", action="store_true", help="names of special tokens in the prompt are these tokens"
    )
    sampling_flags.add(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON instead of streaming")
    args = parser.parse_args()

    def job() -> JsonObject:
        sampling, by = sampling_flags.sampling(args), sampling_flags.ranked_by(args)
        loading, shown = sampling_flags.loading(args), leads() and not args.json
        if (args.prompts is None) != (args.out is None):
            raise UserError("--prompts FILE and --out FILE belong together; give both")
        if not args.prompts:
            prompt = read_prompt(args.prompt, args.file) if leads() else ""
            return generate(model_of(args.run), prompt, sampling, shown, loading, args.special_tokens, by)
        loading = loading.over(started())
        values = write_all(model_of(args.run), args.prompts, args.out, sampling, loading, args.special_tokens, by)
        if shown:
            print(f"wrote {values['written']} of {values['rows']} prompts to {args.out}, {values['kept']} were there")
        return values

    cli.run_job(job, args.json and leads())
