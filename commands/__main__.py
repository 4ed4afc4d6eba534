"""All commands: `stagecraft plan 530b`, or `python -m commands plan 530b`."""

import importlib
import sys

from commands import cli
from support.errors import WRONG_INPUT
from support.nearest import hint
from support.version import version

COMMANDS = {
    "pretrain": "train a recipe: on this machine, or over a hostfile",
    "clusters": "list the clusters, or check a description of one",
    "recipes": "list the recipes",
    "new-recipe": "copy a recipe under a name of your own",
    "diff": "what two recipes do not share",
    "check": "all that is wrong with a DeepSpeed JSON, or what it resolves to",
    "plan": "memory, time and cost of a recipe, without a GPU",
    "preflight": "whether machines, storage and network are ready for a run",
    "watch": "a run while it goes, whoever started it",
    "rehearse": "walk a recipe narrow on this machine",
    "prepare": "fetch, clean and tokenise a recipe's data",
    "clean": "clean a corpus",
    "inspect": "look at prepared data",
    "evaluate": "loss, perplexity and bits per byte of a run",
    "generate": "write text with a run",
    "look": "what a model attends to and expects, as a page",
    "chat": "talk with a run, in a terminal",
    "serve": "an OpenAI-compatible server of a run's export",
    "export": "a run as a Hugging Face folder",
    "import": "a model of somebody else's, to train on from",
    "runs": "list the runs",
    "note": "write a note into a run's record",
    "status": "how a run is, and what its scheduler says",
    "logs": "what a run printed",
    "stop": "have a run save and end",
    "save": "have a run that trains save now",
    "clean-runs": "remove what runs left: old checkpoints, starts that came to nothing",
    "report": "the summary and the curve of a run",
    "try": "try settings of a recipe, a run for each",
    "compare": "runs beside each other: settings, losses, speed",
}


def usage() -> str:
    """What `--help` prints."""
    listed = "\n".join(f"  {name:10s} {what}" for name, what in COMMANDS.items())
    return f"usage: stagecraft COMMAND …\n\n{listed}\n\nstagecraft COMMAND --help says more; stagecraft --version."


def main() -> None:
    """Run the command that the first argument names."""
    if len(sys.argv) < 2:
        print(usage(), file=sys.stderr)
        raise SystemExit(WRONG_INPUT)
    name, *rest = sys.argv[1:]
    if name == "help":  # stagecraft help plan
        name, *rest = (*rest[:1], "--help")
    if name in ("-h", "--help"):
        cli.run_job(lambda: print(usage()))
    elif name == "--version":
        print(f"stagecraft {version()}")
    elif name in COMMANDS:
        sys.argv = [f"stagecraft {name}", *rest]
        importlib.import_module(f"commands.{name.replace('-', '_')}").main()
    else:
        cli.fail(f"there is no command {name!r}; {hint(name, COMMANDS)}", WRONG_INPUT)


if __name__ == "__main__":
    main()
