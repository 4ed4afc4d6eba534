"""What a command line says of how texts are drawn."""

import argparse

from inference.sampling import DEFAULT_NEW_TOKENS, Sampling, parse_bias


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of drawing."""
    usual = Sampling()
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"tokens to write; by default {DEFAULT_NEW_TOKENS}, or what fits"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    numbers = {
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


def sampling(args: argparse.Namespace) -> Sampling:
    """What these flags say. Errors: `UserError` for values out of range."""
    return Sampling(
        greedy=args.greedy,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        no_repeat_ngram=args.no_repeat_ngram,
        bias=parse_bias(args.bias),
        stop=tuple(args.stop),
        seed=args.seed,
        samples=args.samples,
        max_new_tokens=args.max_new_tokens,
    )
