"""Word perplexity by the protocol of Megatron-LM for WikiText-103 (Shoeybi et al. 2019, arXiv:1909.08053, section 5.3
and its `tasks/zeroshot_gpt`)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from support.errors import UserError

if TYPE_CHECKING:
    from inference.measuring.losses import Measured
    from inference.measuring.texts import Words

PROTOCOL, DEFAULT_STRIDE = "wikitext103", 32


def _around(left: str, right: str) -> re.Pattern[str]:
    """What stands in brackets, or between quotation marks, with spaces on the inside."""
    return re.compile(rf"\{left}\s*([^\{right}]*?)\s*\{right}")


# WikiText is split into words, with a space before and behind each mark, and a mark within a word as @-@. These put
# together what was one, in this order: what an earlier rule joins, a later one does not see.
RULES: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (" @-@ ", "-"),  # well @-@ known
    (" @,@ ", ","),  # 1 @,@ 000
    (" @.@ ", "."),  # 3 @.@ 5
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    *((_around(left, right), rf"{left}\1{right}") for left, right in ("()", "[]", "{}", '""', "''")),
    ("= = = =", "===="),  # headings
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),  # a number, in texts that write N for each
    (" 's", "'s"),
)


def detokenised(text: str) -> str:
    """A text of WikiText as it was before it was split into words."""
    for found, instead in RULES:
        text = text.replace(found, instead) if isinstance(found, str) else found.sub(instead, text)
    return text


@dataclass(frozen=True)
class WordLoss:
    """The mean loss of the tokens behind the first, in nats; how many these are; the words of the text; bytes of what
    was read; how many tokens a window scored anew."""

    mean: float
    tokens: int
    words: int
    size: int
    stride: int

    @property
    def per_word(self) -> float:
        """The loss in nats of a word behind the first."""
        return self.mean * self.tokens / (self.words - 1)


def word_loss(words: "Words", model: "Measured", file: Path, asked: int | None = None) -> WordLoss:
    """The loss of a file of WikiText as it is split into words.

    Its words are what spaces separate in it. The whole is put together, encoded as one text, and read in windows of the
    context that begin a stride of tokens after each other, the one that is `asked` or Megatron's. The first window
    scores all of its tokens, each other one its last ones, so that every token but the first is scored once. Nothing
    stands in front. Errors: `UserError` where the file cannot be read or holds fewer than two words, or the stride does
    not fit into the context.
    """
    from inference.measuring.losses import finite

    stride = min(DEFAULT_STRIDE, model.context) if asked is None else asked
    if not 1 <= stride <= model.context:
        raise UserError(f"--stride {stride} does not fit: a window has {model.context} tokens; give 1 to that")
    original = _read(file)
    count = len(original.strip().split(" "))
    text = detokenised(original)
    tokens = words.encode([text])[0].astype(np.int64)
    if count < 2 or len(tokens) < 2:
        raise UserError(f"{file} holds fewer than two words; give another")
    model.check(str(file), tokens)
    mean = finite(str(file), _total(model, tokens, stride) / (len(tokens) - 1))
    return WordLoss(mean, len(tokens) - 1, count, len(text.encode()), stride)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--data {file} is not UTF-8 at byte {error.start}; convert it") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--data {file} cannot be read: {reason}; give a file such as wiki.test.tokens of WikiText-103"
        ) from None


def _total(model: "Measured", tokens: np.ndarray, stride: int) -> float:
    """The summed loss of all tokens but the first, in nats."""
    length, labels = model.context, len(tokens) - 1
    # Behind the first window each scores `stride` more, the last one what is left.
    starts = np.arange(0, max(1, -(-(labels - length) // stride) + 1)) * stride
    total = 0.0
    for first in range(0, len(starts), model.rows):
        place_BS = starts[first : first + model.rows, None] + np.arange(length)
        shown, asked = (tokens[np.minimum(place_BS + ahead, labels)] for ahead in (0, 1))
        start_B1 = place_BS[:, :1]
        new_BS = (place_BS >= np.where(start_B1, start_B1 + length - stride, 0)) & (place_BS < labels)
        losses = model.losses(shown, asked).double().cpu().numpy()
        total += float(losses[new_BS].sum())
    return total
