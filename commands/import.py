"""`stagecraft import FOLDER --recipe 345m`: a model of somebody else's, to train on from."""  # noqa: N999

from pathlib import Path

from commands import cli
from recipes.registry import load
from run import branch
from run.request import Request, run_path
from run.select import new_name
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser(
        "Import a GPT-2 (a Hugging Face folder, a GGUF), a GPT of Megatron-LM or DeepSpeed, or adapters of peft's."
    )
    parser.add_argument("folder", type=Path, help="what holds the model")
    parser.add_argument("--recipe", help="whose data, optimizer, schedule, batch and layout it gets")
    parser.add_argument("--from", dest="base", metavar="RUN[@STEP]", help="of adapters: the run that they lie on")
    parser.add_argument("--tokeniser", help="gpt2, a folder or a hub id; by default the one in the folder")
    parser.add_argument("--run-dir", help="directory to write; by default runs/<recipe>/<time>")
    parser.add_argument("--name", help="a name to call the import by")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()
    if (args.recipe is None) == (args.base is None):
        parser.error("give --recipe for a model, or --from for adapters")

    def job() -> JsonObject:
        name = None if args.name is None else new_name(args.name)
        point = branch.point_of(args.base) if args.base else None
        recipe = point.recipe if point else load(args.recipe)
        run = run_path(recipe, Request(run_dir=args.run_dir))
        from inference import adapters, importing  # imports torch

        if point:
            told = adapters.import_adapter(args.folder, point, run, name)
        else:
            told = importing.import_model(args.folder, recipe, run, args.tokeniser, name)
        if not args.json:
            print(f"imported {args.folder}, a {told['form']} of {told['parameters']:,} parameters, to {run}")
            print("\n".join([*(f"note: {note}" for note in told["notes"]), f"go on with {told['next'][0]}"]))
        return told

    cli.run_job(job, args.json)
