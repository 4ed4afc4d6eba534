"""All commands: `stagecraft plan 530b`, or `python -m commands plan 530b`."""

import importlib
import sys

from commands import cli
from support.errors import WRONG_INPUT
from support.nearest import hint

COMMANDS = {
    "pretrain": "train a recipe: on this machine, or over a hostfile",
    "recipes": "list the recipes",
    "plan": "memory, time and cost of a recipe, without a GPU",
    "rehearse": "walk a recipe narrow on this machine",
    "prepare": "fetch, clean and tokenise a recipe's data",
    "clean": "clean a corpus",
    "inspect": "look at prepared data",
    "evaluate": "loss, perplexity and bits per byte of a run",
    "generate": "write text with a run",
    "export": "a run as a Hugging Face folder",
    "report": "the summary and the curve of a run",
}


def main() -> None:
    """Run the command that the first argument names."""
    listed = "\n".join(f"  {name:10s} {what}" for name, what in COMMANDS.items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: stagecraft COMMAND …\n\n{listed}\n\nstagecraft COMMAND --help says more.")
        raise SystemExit(WRONG_INPUT if len(sys.argv) < 2 else 0)
    name = sys.argv[1]
    if name not in COMMANDS:
        cli.fail(f"there is no command {name!r}; {hint(name, COMMANDS)}", WRONG_INPUT)
    sys.argv = [f"stagecraft {name}", *sys.argv[2:]]
    importlib.import_module(f"commands.{name}").main()


if __name__ == "__main__":
    main()
