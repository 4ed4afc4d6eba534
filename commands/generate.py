"""`stagecraft generate --prompt "KING HENRY"`: write text with a run."""

import argparse
import os
import sys
from pathlib import Path

from commands import cli, rank, sampling_flags
from inference.generate import generate
from inference.named import HELP, model_of
from inference.prompts import read_prompt, read_prompts, write_all
from inference.ranks import Loading, leads, started
from inference.sampling import Sampling
from run import checkpoints
from support.errors import UserError
from support.json_object import JsonObject
from training import presence
from training.launchers import is_rank


def start(args: argparse.Namespace, loading: Loading) -> JsonObject:
    """Start the ranks, which get the same command, after what can be checked without them."""
    from launch.command import see_through, world_of

    hosts, world = world_of(args.ranks, args.hostfile)
    loading.over(world)
    read_prompts(args.prompts, again=True)
    return see_through(["commands", "generate", *sys.argv[1:], "--json"], world, hosts, model_of(args.run))


def be_rank(args: argparse.Namespace, sampling: Sampling, loading: Loading, by: str | None) -> JsonObject:
    """Write this rank's part of the rows: all, where no launcher started it."""
    loading = loading.over(started())
    return write_all(model_of(args.run), args.prompts, args.out, sampling, loading, args.special_tokens, by)


def main() -> None:
    parser = cli.Parser("Write text with a run, or through transformers with the folder of any causal model.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to go on from; by default standard input")
    source.add_argument("--file", type=Path, help="file that holds the prompt")
    source.add_argument("--prompts", type=Path, metavar="FILE", help='a line each, or .jsonl: objects with "prompt"')
    parser.add_argument("--out", type=Path, help="with --prompts: JSON lines; what stands there is not done again")
    parser.add_argument(
        "--special-tokens", action="store_true", help="names of special tokens in the prompt are these tokens"
    )
    sampling_flags.add(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="with --prompts: start so many ranks, which share them")
    parser.add_argument("--hostfile", help="with --prompts: start the ranks on the hosts of this file, by ssh")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by launchers; not needed")
    parser.add_argument("--json", action="store_true", help="print as JSON instead of streaming")
    args = parser.parse_args()
    elsewhere = not is_rank() and (args.ranks is not None or args.hostfile is not None)

    def job() -> JsonObject:
        sampling, by = sampling_flags.sampling(args), sampling_flags.ranked_by(args)
        loading, shown = sampling_flags.loading(args), leads() and not args.json
        if (args.prompts is None) != (args.out is None):
            raise UserError("--prompts FILE and --out FILE belong together; give both")
        if not args.prompts:
            if elsewhere:
                raise UserError("--ranks and --hostfile share the prompts of a file: give --prompts too")
            prompt = read_prompt(args.prompt, args.file) if leads() else ""
            return generate(model_of(args.run), prompt, sampling, shown, loading, args.special_tokens, by)
        values = start(args, loading) if elsewhere else be_rank(args, sampling, loading, by)
        if shown:
            print(f"wrote {values['written']} of {values['rows']} prompts to {args.out}, {values['kept']} were there")
        return values

    if presence.WATCHED not in os.environ:
        return cli.run_job(job, args.json and leads())
    presence.watch_launcher()
    rank.to_the_end(lambda: cli.run_job(job, args.json and leads()))


if __name__ == "__main__":
    main()
