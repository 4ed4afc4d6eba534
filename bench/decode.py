"""Is writing in the model's own layers faster than transformers' `generate`?

`python -m bench.decode` gives both the same weights (a recipe's initial ones: speed does not depend on what was
learned) and the same prompts of mixed lengths, on one core. They take turns. It prints the tokens a second of processor
time of both and the ratio of the medians; greedy texts must be the same.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from commands import cli
from inference.decode.decoder import Decoder
from inference.decode.draw import Odds
from inference.decode.packed import pack
from inference.decode.rows import Request, write
from inference.decode.stage import Stage
from inference.sampling import Sampling
from model.gpt import GPT
from model.huggingface import to_hf
from model.init import init_weights
from model.parallel import SOLO
from recipes.registry import load
from recipes.settings import override
from support.errors import UserError
from support.json_object import JsonObject

END, LONGEST = 0, 16  # the token that ends a text; tokens of the longest prompt
Tokens = list[list[int]]


@dataclass(frozen=True)
class Case:
    """What is written: `count` texts of `new` tokens, none of which ends before."""

    count: int
    new: int
    sampling: Sampling

    def prompts(self, entries: int) -> Tokens:
        """Random ones of 1 to `LONGEST` tokens."""
        draws = torch.Generator().manual_seed(1)
        lengths = torch.randint(1, LONGEST + 1, (self.count,), generator=draws).tolist()
        return [torch.randint(1, entries, (length,), generator=draws).tolist() for length in lengths]


def ours(stage: Stage, case: Case, prompts: Tokens) -> Tokens:
    """The new tokens of each prompt."""
    silent = torch.zeros(stage.config.vocab_size)
    silent[END] = -torch.inf
    wanted = [Request(number, tuple(prompt), number, case.new) for number, prompt in enumerate(prompts)]
    decoder = Decoder(stage, case.count, max(map(len, prompts)) + case.new)
    rows = write([decoder], Odds(case.sampling, silent, {}, END), wanted, lambda row: False)
    return [row.new for row in sorted(rows, key=lambda row: row.request.number)]


def theirs(model: GPT2LMHeadModel, case: Case, prompts: Tokens) -> Tokens:
    """The same by transformers, filled up on the left."""
    longest, how = max(map(len, prompts)), case.sampling
    filled = torch.tensor([[END] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings: JsonObject = {"max_new_tokens": case.new, "pad_token_id": END, "suppress_tokens": [END]}
    drawn = {"do_sample": True, "temperature": how.temperature, "top_k": how.top_k}
    settings |= {"do_sample": False} if how.greedy else drawn
    output = model.generate(filled, attention_mask=mask, **settings)  # type: ignore[operator]
    found: Tokens = output[:, longest:].tolist()
    return found


def compare(model: GPT, case: Case, repeats: int) -> JsonObject:
    """Speeds of both in tokens a second of processor time, medians of turns, and their ratio.

    Errors: `UserError` where greedy texts differ.
    """
    config = model.config
    stage = Stage(config, SOLO, range(config.num_layers))
    stage.load_state_dict(model.state_dict())
    pack(stage)
    stage.eval()
    hf, prompts = to_hf(model, config.vocab_size, END, END), case.prompts(config.vocab_size)
    ways: dict[str, Callable[[], Tokens]] = {
        "ours": lambda: ours(stage, case, prompts),
        "transformers": lambda: theirs(hf, case, prompts),
    }
    texts = {name: way() for name, way in ways.items()}
    if case.sampling.greedy and texts["ours"] != texts["transformers"]:
        raise UserError("the greedy texts differ, so there is nothing to compare")
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.process_time()
            found = way()
            speeds[name].append(sum(map(len, found)) / (time.process_time() - began))
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    return {
        "prompts": case.count,
        "greedy": case.sampling.greedy,
        **medians,
        "ratio": medians["ours"] / medians["transformers"],
    }


def main() -> None:
    parser = cli.Parser("Write in our own layers and through transformers; print tokens a CPU second and the ratios.")
    parser.add_argument("recipe", nargs="?", default="gpt_tiny")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 64], help="texts at once")
    parser.add_argument(
        "--new-tokens", type=int, help="of each text; by default what fits into the context, at most 100"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        torch.set_num_threads(1)
        recipe = override(load(args.recipe), args.settings)
        model = GPT(recipe.model).eval()
        init_weights({p: name for name, p in model.named_parameters()}, recipe.model, recipe.seed)
        room = recipe.model.seq_length - LONGEST
        new = min(100, room) if args.new_tokens is None else args.new_tokens
        if not 1 <= new <= room or min(args.prompts) < 1 or args.repeats < 1:
            raise UserError(f"--new-tokens must be from 1 to {room}, --prompts and --repeats at least 1")
        found = []
        for greedy in (True, False):
            for count in args.prompts:
                found.append(compare(model, Case(count, new, Sampling(greedy=greedy)), args.repeats))
                one, way = found[-1], "greedy" if greedy else "drawn"
                print(
                    f"{recipe.name}, {way}, {count:3d} prompts: {one['ours']:8,.0f} tokens a CPU second, transformers "
                    f"{one['transformers']:8,.0f}, ratio {one['ratio']:.2f}",
                    file=sys.stderr if args.json else sys.stdout,
                    flush=True,
                )
        return found

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
