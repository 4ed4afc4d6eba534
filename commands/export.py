"""`stagecraft export --run runs/gpt_tiny/…`: a run as a Hugging Face folder."""

from pathlib import Path

from commands import cli
from inference.export import export
from run.directory import read_recipe
from run.select import HELP, find


def main() -> None:
    parser = cli.Parser("Export a run as a Hugging Face folder (GPT2LMHeadModel, fp32, with its tokeniser).")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--out", type=Path, help="folder to write; by default export/ in the run directory")
    parser.add_argument("--json", action="store_true", help="print where it lies as JSON")
    args = parser.parse_args()

    def job() -> dict[str, str]:
        run = find(args.run)
        read_recipe(run)
        folder = args.out or run / "export"
        export(run, folder)
        if not args.json:
            print(f"exported {run} to {folder}")
        return {"run": str(run), "folder": str(folder)}

    cli.run_job(job, args.json)
