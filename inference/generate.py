"""Write text with a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from run.checkpoints import Chosen, choose
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

DEFAULT_NEW_TOKENS = 200
MOST_SEEDS = 2**32  # numpy's


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn; each of the `samples` with the next seed. Errors: `UserError` for values out of range."""

    greedy: bool = False  # always the likeliest token
    temperature: float = 0.8
    top_k: int = 50  # 0: off
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    samples: int = 1
    max_new_tokens: int | None = None  # None: `DEFAULT_NEW_TOKENS`, or what fits

    def __post_init__(self) -> None:
        checks = {
            "--temperature": (self.temperature > 0, "above 0 (use --greedy for the likeliest text)"),
            "--top-k": (self.top_k >= 0, "at least 0 (0 is off)"),
            "--top-p": (0 < self.top_p <= 1, "in (0, 1]"),
            "--repetition-penalty": (self.repetition_penalty > 0, "above 0 (1 is off)"),
            "--samples": (self.samples >= 1, "at least 1"),
            "--seed": (0 <= self.seed <= MOST_SEEDS - self.samples, f"from 0 to {MOST_SEEDS - self.samples}"),
        }
        for flag, (good, rule) in checks.items():
            if not good:
                raise UserError(f"{flag} must be {rule}")

    @property
    def arguments(self) -> JsonObject:
        """The arguments of transformers' `generate`."""
        values: JsonObject = {"do_sample": not self.greedy, "repetition_penalty": self.repetition_penalty}
        if not self.greedy:
            values |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return values


def load(path: Path, which: str | None = None) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, Chosen | None]":
    """Model and tokeniser of an exported folder, or of a run directory with the checkpoint that `which` means.

    Errors: `UserError` where it is neither, or there is no such checkpoint.
    """
    import torch

    from inference.export import load_as_hf

    checkpoint = None
    if not (path / "config.json").exists():
        checkpoint = choose(path, which)
        checkpoint.tell()
    elif which is not None:
        raise UserError(f"{path} is an exported folder: it has no checkpoints; leave --checkpoint out")
    model, tokeniser = load_as_hf(path, checkpoint) if checkpoint else load_exported(path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokeniser, checkpoint


def load_exported(folder: Path) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """A GPT-2 of Hugging Face's form and its tokeniser. Errors: `UserError` where the folder holds something else."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    from data.tokens import tokenisers

    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be read as a model: {reason}; give a run, or export it again") from None
    if not isinstance(model, GPT2LMHeadModel):
        raise UserError(f"{folder} holds a {type(model).__name__}, not a GPT-2; give a run or an export of one")
    tokeniser = tokenisers.load(str(folder))
    entries = tokenisers.entries(tokeniser)
    if entries > model.config.vocab_size:
        raise UserError(
            f"{folder} has a tokeniser of {entries} entries for a model of {model.config.vocab_size}: they do not "
            "belong together; export the run again"
        )
    return model, tokeniser


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


def generate(path: Path, prompt: str, sampling: Sampling, stream: bool = False, which: str | None = None) -> JsonObject:
    """Texts that go on from a prompt, written with a run or an exported folder; a `stream` prints them as they come."""
    import torch
    from transformers import TextStreamer, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokeniser, checkpoint = load(path, which)
    # A prompt of nothing is the beginning of a document.
    ids = tokeniser(prompt, add_special_tokens=False)["input_ids"] or [tokeniser.eos_token_id]
    count = new_tokens(len(ids), model.config.n_positions, sampling.max_new_tokens)
    inputs = torch.tensor([ids], device=model.device)
    texts: list[str] = []
    for seed in range(sampling.seed, sampling.seed + sampling.samples):
        set_seed(seed)
        if stream and sampling.samples > 1:
            print(f"--- sample {len(texts) + 1} (seed {seed})")
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            pad_token_id=tokeniser.eos_token_id,
            suppress_tokens=meaningless(model, tokeniser) or None,
            streamer=TextStreamer(tokeniser, skip_special_tokens=True) if stream else None,
            **sampling.arguments,
        )
        texts.append(tokeniser.decode(output[0], skip_special_tokens=True))
    told = checkpoint.told if checkpoint else {"checkpoint": None, "passed_over": []}
    return {"prompt": prompt, "samples": texts, **told}
