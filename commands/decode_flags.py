"""What the command line of `plan --decode` says besides the plan's own flags."""

import argparse

from planner.decode import ELEMENT_BYTES, Wish, decode_plan
from planner.show_decode import show_decode
from planner.timing import Machine
from planner.values import DecodePlan
from recipes.recipe import Recipe
from support.errors import UserError

# Flags of a training run: they mean nothing where a model writes.
TRAINING = ("deepspeed_config", "nodes", "world_size", "price", "storage", "verify", "search", "top", "plot")
USUAL = Wish()


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of decoding."""
    group = parser.add_argument_group("with --decode")
    group.add_argument("--decode", action="store_true", help="what `generate` needs: GPUs, texts at once, tokens/s")
    for flag, what in (("--tensor", "tensor ranks"), ("--pipeline", "pipeline stages")):
        group.add_argument(flag, type=int, metavar="N", help=f"{what}; by default the fewest GPUs that hold the model")
    group.add_argument("--precision", choices=ELEMENT_BYTES, help=f"by default {USUAL.precision}")
    group.add_argument("--prompt-tokens", type=int, metavar="N", help="by default half of the context")
    group.add_argument("--new-tokens", type=int, metavar="N", help="by default what then fits into the context")
    group.add_argument("--rows", type=int, metavar="N", help="texts at once; by default as many as fit")


def wish(args: argparse.Namespace) -> Wish | None:
    """What --decode asks for, None without it. Errors: `UserError` for flags that do not go together."""
    given = {name: getattr(args, name) for name in vars(USUAL) if getattr(args, name) is not None}
    unused = [name for name in TRAINING if getattr(args, name)] if args.decode else list(given)
    if unused:
        flag = f"--{unused[0]}" if unused[0] == "deepspeed_config" else f"--{unused[0].replace('_', '-')}"
        raise UserError(f"{flag} does not go with --decode" if args.decode else f"{flag} is of --decode; give both")
    return Wish(**given) if args.decode else None


def planned(recipe: Recipe, machine: Machine | None, wish: Wish, quiet: bool) -> DecodePlan:
    """The plan for writing, shown unless it is to be `quiet`."""
    values = decode_plan(recipe, machine, wish)
    if not quiet:
        show_decode(values)
    return values
