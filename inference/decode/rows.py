"""Many texts through one decoder: finished rows leave the batch and others enter."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from inference.decode.decoder import Decoder
from inference.decode.draw import Odds, chance
from inference.sampling import NOT_FINITE
from support.errors import UserError

NONE = -1  # drawn where the scores are no numbers


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
        last ones, half of it. Learned positions cannot slide. All of it is the prefix of a model that has one."""
        if len(self.tokens) < context:
            return self.tokens
        first = min(len(self.request.prompt), context // 4)
        return self.tokens[:first] + self.tokens[-(context // 2) :]


Stopped = Callable[[Row], bool]  # whether a text is finished, asked after each token


def write(decoders: Sequence[Decoder], odds: Odds, requests: Iterable[Request], stopped: Stopped) -> Iterator[Row]:
    """Write texts; each is given back when it is finished.

    Each ends with the end of a text, at its most tokens, or where `stopped` says so. Every rank gets the same requests
    and gives back the same rows. Each decoder has a batch of its own: while one stage works for the first batch, the
    stage before it works for the next. The last stage tells at once what it has drawn, so the first one goes on with
    the first batch while the others are still on their way.
    """
    waiting = map(Row, requests)
    batches = [_Batch(decoder, odds, stopped) for decoder in decoders]
    going = True
    while going:
        going = False
        for batch in batches:
            try:
                yield from batch.settle()
            except UserError:
                for other in batches:
                    other.drop()
                raise
            going |= batch.forward(waiting)


class _Batch:
    """The rows of a decoder. Finished ones leave it and others enter. A row whose context is full leaves it too, and
    enters again with a new window."""

    def __init__(self, decoder: Decoder, odds: Odds, stopped: Stopped) -> None:
        self.decoder, self.odds, self.stopped = decoder, odds, stopped
        self.rows: list[Row] = []
        self.again: list[Row] = []
        self.read: list[Row] = []  # the rows of the last pass, whose next tokens `told` gives
        self.told: Callable[[], Tensor]

    def forward(self, waiting: Iterator[Row]) -> bool:
        """Read the rows that enter, or else one more token of each, and begin to draw what is next. False where there
        are no rows."""
        free = self.decoder.rows - len(self.rows) - len(self.again)
        # Texts of about one length are read together.
        entering = sorted([*self.again, *islice(waiting, free)], key=lambda row: len(row.window(self.decoder.columns)))
        self.again = []
        self.rows += entering
        self.read = entering or list(self.rows)
        if entering:
            logits_BV = self.decoder.read([row.window(self.decoder.columns) for row in entering])
        elif self.rows:
            logits_BV = self.decoder.step([row.tokens[-1] for row in self.rows])
        else:
            return False
        self.told = _drawn(self.decoder, self.odds, self.read, logits_BV)
        return True

    def settle(self) -> Iterator[Row]:
        """Give the rows that were read their next tokens; give back those that are finished.

        Errors: `UserError` on all stages where the scores are no numbers.
        """
        rows, self.read = self.read, []
        if not rows:
            return
        tokens = self.told().tolist()
        if NONE in tokens:
            raise UserError(NOT_FINITE)
        for row, token in zip(rows, tokens, strict=True):
            row.tokens.append(token)
        finished = {id(row) for row in rows if _is_over(row, self.odds.end) or self.stopped(row)}
        for place in reversed(range(len(self.rows))):
            row, over = self.rows[place], id(self.rows[place]) in finished
            if over or self.decoder.lengths[place] == self.decoder.columns:
                self.rows[place] = self.rows[self.decoder.leave(place)]
                self.rows.pop()
                if over:
                    yield row
                else:
                    self.again.append(row)

    def drop(self) -> None:
        """Hear what the last stage may have told already, and nobody needs: else the next to listen would get it."""
        if self.read:
            self.read = []
            self.told()


def _is_over(row: Row, end: int) -> bool:
    return row.tokens[-1] == end or len(row.tokens) - len(row.request.prompt) >= row.request.most


def _drawn(decoder: Decoder, odds: Odds, rows: list[Row], logits_BV: Tensor | None) -> Callable[[], Tensor]:
    """The next token of rows, when it is called; the last stage draws and tells the others."""
    if logits_BV is None:
        id_B = torch.empty(len(rows), dtype=torch.long, device=decoder.device)
    else:
        try:
            id_B = odds.draw(logits_BV, [row.tokens for row in rows], [row.chance for row in rows])
        except UserError:  # the other stages wait for what is drawn: all say it together
            id_B = torch.full((len(rows),), NONE, device=decoder.device)
    return decoder.line.telling(id_B)
