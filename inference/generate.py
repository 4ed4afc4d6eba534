"""Write text with a run: `stagecraft generate --prompt "KING HENRY"`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from run.directory import newest
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

DEFAULT_NEW_TOKENS = 200


def load(path: Path) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """Model and tokeniser of a run directory or of an exported folder. Errors: `UserError` where it is neither."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (path / "config.json").exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoModelForCausalLM.from_pretrained(path).to(device), AutoTokenizer.from_pretrained(path)
    from inference.export import load_as_hf

    model, tokeniser = load_as_hf(path)
    return model.to(device), tokeniser


def meaningless(model: "GPT2LMHeadModel", tokeniser: "PreTrainedTokenizerFast") -> list[int]:
    """Ids that the model could write and the tokeniser could not read: gaps, or the padding of somebody else's model.

    They must not be drawn, nor take a share of the odds.
    """
    return sorted(set(range(model.config.vocab_size)) - set(tokeniser.get_vocab().values()))


def new_tokens(prompt_tokens: int, context: int, asked: int | None) -> int:
    """How many tokens to write. Errors: `UserError` where they do not fit behind the prompt."""
    room = context - prompt_tokens
    if room < 1:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens but the model's context is {context}; give at most {context - 1}"
        )
    if asked is None:
        return min(DEFAULT_NEW_TOKENS, room)
    if not 1 <= asked <= room:
        raise UserError(
            f"--max-new-tokens {asked} does not fit: behind a prompt of {prompt_tokens} tokens a context "
            f"of {context} has room for 1 to {room}"
        )
    return asked


def sampling(args: argparse.Namespace) -> JsonObject:
    """The arguments of transformers' `generate`. Errors: `UserError` for values outside their range."""
    checks = {
        "--temperature": (args.temperature > 0, "above 0 (use --greedy for the likeliest text)"),
        "--top-k": (args.top_k >= 0, "at least 0 (0 is off)"),
        "--top-p": (0 < args.top_p <= 1, "in (0, 1]"),
        "--repetition-penalty": (args.repetition_penalty > 0, "above 0 (1 is off)"),
        "--samples": (args.samples >= 1, "at least 1"),
    }
    for flag, (good, rule) in checks.items():
        if not good:
            raise UserError(f"{flag} must be {rule}")
    values: JsonObject = {"do_sample": not args.greedy, "repetition_penalty": args.repetition_penalty}
    if not args.greedy:
        values |= {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    return values


def prompts(args: argparse.Namespace) -> str:
    """The prompt: the flag's, a file's, or standard input's where something is piped in; else empty."""
    if args.prompt is not None:
        return str(args.prompt)
    if args.file is not None:
        try:
            return str(args.file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"prompt file {args.file} is not UTF-8 at byte {error.start}; convert it") from None
    if sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 at byte {error.start}; convert it") from None


def generate(args: argparse.Namespace) -> JsonObject:
    """Write `args.samples` texts, streamed as they come unless they go out as JSON; return prompt and texts."""
    settings, prompt = sampling(args), prompts(args)
    import torch
    from transformers import TextStreamer, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokeniser = load(args.run or newest())
    # A prompt of nothing is the beginning of a document.
    ids = tokeniser(prompt, add_special_tokens=False)["input_ids"] or [tokeniser.eos_token_id]
    count = new_tokens(len(ids), model.config.n_positions, args.max_new_tokens)
    inputs = torch.tensor([ids], device=model.device)
    texts = []
    for number in range(args.samples):
        set_seed(args.seed + number)
        if args.samples > 1 and not args.json:
            print(f"--- sample {number + 1} (seed {args.seed + number})")
        streamer = None if args.json else TextStreamer(tokeniser, skip_special_tokens=True)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            pad_token_id=tokeniser.eos_token_id,
            suppress_tokens=meaningless(model, tokeniser) or None,
            streamer=streamer,
            **settings,
        )
        texts.append(tokeniser.decode(output[0], skip_special_tokens=True))
    return {"prompt": prompt, "samples": texts}
