"""`stagecraft export --run runs/gpt_tiny/…`: a run as a Hugging Face folder or a GGUF, or its adapters as peft's."""

from pathlib import Path

from commands import cli
from inference.export import export
from inference.form import DTYPES, FORMATS, QUANTS, Form
from run import checkpoints
from run.select import HELP, find
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser(
        "Export a run as a Hugging Face folder (GPT2LMHeadModel, tokeniser, card), a GGUF, or its adapters."
    )
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    parser.add_argument(
        "--out", type=Path, help="what to write; by default export/, export.gguf or adapter/ in the run directory"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="hf", help="a folder, one file for llama.cpp, or peft's folder"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default fp32, as they were trained")
    parser.add_argument("--shard-size", metavar="SIZE", help="the most bytes of a file of weights; by default 5GB")
    parser.add_argument("--quantize", choices=QUANTS, help="of a GGUF: bits of its matrices; by default f32")
    parser.add_argument("--json", action="store_true", help="print where it lies as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        form = Form(args.format, args.dtype, args.shard_size, args.quantize)
        run = find(args.run)
        folder = args.out or run / {"hf": "export", "gguf": "export.gguf"}.get(form.format, form.format)
        checkpoint = export(run, folder, args.checkpoint, form)
        if not args.json:
            print(f"exported {run} to {folder}")
        return {"run": str(run), "folder": str(folder), **checkpoint.told}

    cli.run_job(job, args.json)
