"""The data of a recipe: the corpora that a model reads, and how they become samples."""

import math
from dataclasses import dataclass
from typing import ClassVar

from support.errors import UserError

BASE = "base"  # the tokeniser of the model that is tuned


@dataclass(frozen=True)
class Part:
    """A corpus of a blend and its weight there: its share of the samples, or its budget in tokens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    corpus: str
    weight: float = 0.0


@dataclass(frozen=True)
class Data:
    """What the model reads: a corpus (name, path, hub id) or a blend of them, and a tokeniser.

    The weights of a blend add up to 1 (shares) or to the recipe's token budget (tokens of each). Without weights a part
    of n tokens is drawn in proportion to n to the power of 1 / `temperature` (Conneau et al. 2020, arXiv:1911.02116,
    section 3.1). With 1 each part is drawn by its size. A higher temperature draws more from small parts.

    `clean` names the stages by which each corpus is cleaned before it is tokenised, in the words of `stagecraft
    clean`. With `separate_documents` the documents that were packed into one sample do not see each other, and
    positions begin anew in each. The tokeniser is `bpe:N`, `gpt2`, a folder or a hub id.

    With a `template` the rows of the corpus are examples to tune a model on, of which the answers are learned: a text
    with the fields of a row in braces, the last of them the answer; or "auto", for rows that have `messages`, or
    `prompt` and `completion`. The tokeniser is "base" then, that of the model that is tuned. An example that is longer
    than the context is an error, or with `skip_longer` left out.

    The last three fields belong to the masked objective: the share of the tokens that the model has to guess, and which
    part of these becomes the mask token (the last entry of the vocabulary) or a random token.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    corpus: str | tuple[Part, ...]
    tokeniser: str
    clean: tuple[str, ...] = ()
    temperature: float = 1.0
    separate_documents: bool = False
    template: str = ""
    skip_longer: bool = False
    masked_share: float = 0.10
    masked_to_mask: float = 0.8
    masked_to_random: float = 0.1

    def __post_init__(self) -> None:
        weights = [part.weight for part in self.parts]
        if not weights:
            raise UserError("data.corpus is an empty blend; name at least one corpus")
        if any(weights) and not all(0 < weight < math.inf for weight in weights):
            part = next(part for part in self.parts if not 0 < part.weight < math.inf)
            raise UserError(
                f"data.corpus: the weight of {part.corpus} is {part.weight}; give every part a weight above 0, or none"
            )
        if not 0 < self.temperature < math.inf or (any(weights) and self.temperature != 1):
            raise UserError(
                f"data.temperature is {self.temperature}; it must be above 0, and goes with a blend without weights"
            )
        if not 0 < self.masked_share <= 1:
            raise UserError(f"data.masked_share is {self.masked_share}; it must be above 0 and at most 1")
        if self.template and (self.clean or self.tokeniser.startswith("bpe:")):
            field, value = ("clean", ",".join(self.clean)) if self.clean else ("tokeniser", self.tokeniser)
            raise UserError(
                f"data.template tunes a model on examples, and data.{field} {value} is for texts; leave it out"
            )
        if self.tokeniser == BASE and not self.template:
            raise UserError(f"data.tokeniser {BASE} is that of a model that is tuned; give data.template, or another")
        shares = (self.masked_to_mask, self.masked_to_random)
        if not (min(shares) >= 0 and sum(shares) <= 1 + 1e-9):
            raise UserError(
                f"data.masked_to_mask is {shares[0]} and data.masked_to_random {shares[1]}; each must be at least 0, "
                "their sum at most 1"
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The blend; of a single corpus that one."""
        return (Part(self.corpus),) if isinstance(self.corpus, str) else self.corpus

    @property
    def tunes(self) -> bool:
        """Whether rows are read as examples to tune on."""
        return bool(self.template)

    @property
    def described(self) -> str:
        """The blend in a few words."""
        heaviest = max(self.parts, key=lambda part: part.weight).corpus
        return heaviest if len(self.parts) == 1 else f"{heaviest} and {len(self.parts) - 1} more"
