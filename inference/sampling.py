"""How texts are drawn, as its user says it. Imports no torch: flags are checked before anything heavy is loaded."""

import math
from dataclasses import dataclass

from inference.postprocess import STEPS, tidied
from support.errors import UserError

NOT_FINITE = "the model's scores are not finite: its training has diverged; take an earlier checkpoint"
DEFAULT_NEW_TOKENS = 200
MOST_SEEDS = 2**32  # numpy's, which transformers seeds too
FAR = 1e6  # scores times or through more than this leave the range of a float, and an infinite score is no score

NEAR = f"from {1 / FAR:f} to {FAR:,.0f}"


def _near(factor: float) -> bool:
    return 1 / FAR <= factor <= FAR


def is_text(argument: str) -> bool:
    """Whether an argument is UTF-8: what is not reaches us as halves of surrogate pairs, which no tokeniser takes."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in argument)


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn; each of the `samples` with the next seed. Errors: `UserError` for values out of range."""

    greedy: bool = False  # always the likeliest token
    beams: int = 1  # above 1: the likeliest text that a search with so many finds; nothing is drawn
    temperature: float = 0.8
    top_k: int = 50  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0  # 0: off
    bias: tuple[tuple[str, float], ...] = ()  # texts, and what is added to the score of their last token
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    tidy: tuple[str, ...] = ()  # what is done with a text in the end, in this order: see `inference/postprocess.py`
    seed: int = 0
    samples: int = 1
    max_new_tokens: int | None = None  # None: `DEFAULT_NEW_TOKENS`, or what fits

    def __post_init__(self) -> None:
        checks = {
            "--temperature": (_near(self.temperature), f"{NEAR} (--greedy is the likeliest text)"),
            "--top-k": (self.top_k >= 0, "at least 0 (0 is off)"),
            "--top-p": (0 < self.top_p <= 1, "in (0, 1]"),
            "--min-p": (0 <= self.min_p <= 1, "in [0, 1] (0 is off)"),
            "--repetition-penalty": (_near(self.repetition_penalty), f"{NEAR} (1 is off)"),
            "--no-repeat-ngram": (self.no_repeat_ngram >= 0, "at least 0 (0 is off)"),
            "--stop": (all(map(is_text, self.stop)) and all(self.stop), "a text in UTF-8 that is not empty"),
            "--tidy": (set(self.tidy) <= set(STEPS), f"names of {', '.join(STEPS)}, with commas between them"),
            "--beams": (self.beams == 1 or (self.beams > 1 and self.samples == 1), "at least 1, and gives one sample"),
            "--samples": (self.samples >= 1, "at least 1"),
            "--seed": (0 <= self.seed <= MOST_SEEDS - self.samples, f"from 0 to {MOST_SEEDS - self.samples}"),
            "--max-new-tokens": (self.max_new_tokens is None or self.max_new_tokens >= 1, "at least 1"),
        }
        for flag, (good, rule) in checks.items():
            if not good:
                raise UserError(f"{flag} must be {rule}")

    @property
    def seeds(self) -> range:
        """The seed of each sample."""
        return range(self.seed, self.seed + self.samples)

    def cut(self, text: str) -> str:
        """What was written, up to the first stop string in it."""
        found = [at for each in self.stop if (at := text.find(each)) >= 0]
        return text[: min(found)] if found else text

    def finished(self, text: str) -> str:
        """What was written, cut and tidied."""
        return tidied(self.cut(text), self.tidy)


def parse_bias(given: list[str]) -> tuple[tuple[str, float], ...]:
    """What `--bias " King=2.5"` says. Errors: `UserError` where it has no text or no number."""
    found = []
    for each in given:
        text, equals, number = each.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (text and is_text(text) and equals and (abs(value) <= FAR or value == -math.inf)):
            raise UserError(
                f"--bias {each!r}: write TEXT=NUMBER, in UTF-8; the number, at most {FAR:,.0f}, is added to the "
                "score, and -inf forbids the text"
            )
        found.append((text, value))
    return tuple(found)


def new_tokens(prompt_tokens: int, context: int, asked: int | None) -> int:
    """How many tokens to write where a text stays within the context. Errors: `UserError` where they do not fit."""
    room = room_behind(prompt_tokens, context)
    if asked is None:
        return min(DEFAULT_NEW_TOKENS, room)
    if not 1 <= asked <= room:
        raise UserError(
            f"--max-new-tokens {asked} does not fit: behind a prompt of {prompt_tokens} tokens a context "
            f"of {context} has room for 1 to {room}"
        )
    return asked


def room_behind(prompt_tokens: int, context: int) -> int:
    """How many tokens fit behind a prompt. Errors: `UserError` where there is none."""
    if prompt_tokens >= context:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens but the model's context is {context}; give at most {context - 1}"
        )
    return context - prompt_tokens
