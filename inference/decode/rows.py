"""Many texts through one decoder: finished rows leave the batch and others enter."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from inference.decode.decoder import Decoder
from inference.decode.draw import Odds, chance


@dataclass(frozen=True)
class Request:
    """A text to write: its number, the tokens of its prompt (at least one), its seed, and the most new tokens."""

    number: int
    prompt: tuple[int, ...]
    seed: int
    most: int


@dataclass
class Row:
    """A text that is being written: the tokens of prompt and text, and its random numbers."""

    request: Request
    tokens: list[int] = field(init=False)
    chance: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.chance = chance(self.request.seed, self.request.prompt)

    @property
    def new(self) -> list[int]:
        """The tokens behind the prompt, the end of the text included."""
        return self.tokens[len(self.request.prompt) :]

    def window(self, context: int) -> list[int]:
        """What is read anew where the context is full: the first tokens, a quarter of the context at most, and the
        last ones, half of it. Learned positions cannot slide."""
        if len(self.tokens) < context:
            return self.tokens
        first = min(len(self.request.prompt), context // 4)
        return self.tokens[:first] + self.tokens[-(context // 2) :]


Stopped = Callable[[Row], bool]  # whether a text is finished, asked after each token


def write(decoder: Decoder, odds: Odds, requests: Iterable[Request], stopped: Stopped) -> Iterator[Row]:
    """Write texts; each is given back when it is finished.

    Each ends with the end of a text, at its most tokens, or where `stopped` says so. Every rank gets the same requests
    and gives back the same rows. A row whose context is full leaves the batch, and enters it again with a new window.
    """
    waiting = map(Row, requests)
    rows: list[Row] = []
    again: list[Row] = []
    while True:
        room = decoder.rows - len(rows)
        entering = again + list(islice(waiting, max(0, room - len(again))))
        again = []
        if entering:
            logits_BV = decoder.read([row.window(decoder.columns) for row in entering])
            rows += entering
        elif rows:
            entering, logits_BV = rows, decoder.step([row.tokens[-1] for row in rows])
        else:
            return
        for row, token in zip(entering, _drawn(decoder, odds, entering, logits_BV), strict=True):
            row.tokens.append(token)
        finished = {id(row) for row in entering if _is_over(row, odds.end) or stopped(row)}
        for place in reversed(range(len(rows))):
            row, over = rows[place], id(rows[place]) in finished
            if over or decoder.lengths[place] == decoder.columns:
                last = decoder.leave(place)
                rows[place] = rows[last]
                rows.pop()
                if over:
                    yield row
                else:
                    again.append(row)


def _is_over(row: Row, end: int) -> bool:
    return row.tokens[-1] == end or len(row.tokens) - len(row.request.prompt) >= row.request.most


def _drawn(decoder: Decoder, odds: Odds, rows: list[Row], logits_BV: Tensor | None) -> list[int]:
    """The next token of rows; the last stage draws and tells the others."""
    if logits_BV is None:
        id_B = torch.empty(len(rows), dtype=torch.long, device=decoder.device)
    else:
        id_B = odds.draw(logits_BV, [row.tokens for row in rows], [row.chance for row in rows])
    found: list[int] = decoder.line.from_last(id_B).tolist()
    return found
