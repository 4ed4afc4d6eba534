"""What a command line says of how texts are drawn, and by which part of a model."""

import argparse

from inference.postprocess import STEPS
from inference.ranking import LIKELIHOOD, WAYS
from inference.ranks import PRECISIONS, Loading
from inference.sampling import DEFAULT_NEW_TOKENS, Sampling, parse_bias
from support.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of drawing."""
    usual = Sampling()
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"tokens to write; by default {DEFAULT_NEW_TOKENS}, or what fits"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    numbers = {
        "--beams": (usual.beams, "above 1: search for the likeliest text with so many in view"),
        "--temperature": (usual.temperature, "flattens (above 1) or sharpens the odds"),
        "--top-k": (usual.top_k, "draw from the k likeliest tokens; 0 is off"),
        "--top-p": (usual.top_p, "draw from the likeliest tokens of this total odds"),
        "--min-p": (usual.min_p, "draw from tokens at least so many times as likely as the likeliest; 0 is off"),
        "--repetition-penalty": (usual.repetition_penalty, "above 1 makes written tokens less likely"),
        "--no-repeat-ngram": (usual.no_repeat_ngram, "no sequence of so many tokens is written twice; 0 is off"),
        "--seed": (usual.seed, "a text is a function of its seed and its prompt"),
        "--samples": (usual.samples, "how many texts to write, each with the next seed"),
    }
    for flag, (default, what) in numbers.items():
        parser.add_argument(flag, type=type(default), default=default, help=what)
    parser.add_argument("--bias", action="append", default=[], metavar="TEXT=NUMBER", help="added to a text's score")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="texts end before it; repeatable")
    parser.add_argument("--tidy", metavar="NAMES", help=f"done in the end, in this order: {','.join(STEPS)} or some")
    parser.add_argument("--best-of", type=int, metavar="N", help="write N texts and rank them, the best first")
    ways = f"of --best-of: {', '.join(WAYS)}, or FILE.py:FUNCTION of prompt and text; by default {LIKELIHOOD}"
    parser.add_argument("--rank-by", metavar="WAY", help=ways)
    for flag, what in (("--tensor", "tensor ranks"), ("--pipeline", "pipeline stages")):
        parser.add_argument(flag, type=int, default=1, metavar="N", help=f"{what} of a run's model; see --ranks")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of weights and activations")


def loading(args: argparse.Namespace) -> Loading:
    """How the model is loaded. Errors: `UserError` where as many ranks were not started."""
    return Loading(args.checkpoint, args.tensor, args.pipeline, args.precision)


def ranked_by(args: argparse.Namespace) -> str | None:
    """How texts are ranked, None where they are not."""
    return (args.rank_by or LIKELIHOOD) if args.best_of is not None else None


def sampling(args: argparse.Namespace) -> Sampling:
    """What these flags say. Errors: `UserError` for values out of range."""
    if args.best_of is None and args.rank_by:
        raise UserError("--rank-by ranks the texts of --best-of; give that too")
    if args.best_of is not None and (args.best_of < 1 or args.samples != 1):
        raise UserError("--best-of must be at least 1, and takes the place of --samples: leave that out")
    return Sampling(
        greedy=args.greedy,
        beams=args.beams,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        no_repeat_ngram=args.no_repeat_ngram,
        bias=parse_bias(args.bias),
        stop=tuple(args.stop),
        tidy=() if args.tidy is None else tuple(name.strip() for name in args.tidy.split(",")),
        seed=args.seed,
        samples=args.best_of or args.samples,
        max_new_tokens=args.max_new_tokens,
    )
