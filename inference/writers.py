"""What writes texts: a run's model in its own layers. `inference/foreign.py` does the same with anybody's model."""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from data.tokens import tokenisers
from inference.decode.beam import search
from inference.decode.decoder import Decoder, Line, Scored
from inference.decode.draw import Odds
from inference.decode.rows import Request, Row, Stopped, write
from inference.decode.stage import Stage
from inference.sampling import Sampling
from model.layout import Layout
from model.parallel import Axis
from planner.decoding import cache_bytes, decode_work, most_rows
from planner.planning import USABLE_SHARE
from support.errors import UserError

# On a CPU; on GPUs their memory counts, as `planner.decoding` does.
MOST_ROWS = 64  # texts at once
CACHE_BYTES = 2**31  # for the keys and values of all of them, on each rank

Text = tuple[list[int], list[int]]  # the tokens of a beginning, and of what goes on from it


class Writer(Protocol):
    """A model with its tokeniser. `context` is how many tokens it sees; a text that `slides` may be longer.

    `framed` says whether a prompt gets what its tokeniser puts around a text, such as a token for the beginning.
    `shares` are the ranks that hold the same weights, for who has them share the work.
    """

    tokeniser: PreTrainedTokenizerFast
    context: int
    slides: bool
    framed: bool
    shares: Axis

    def write(self, requests: list[Request], sampling: Sampling, stopped: Stopped) -> Iterator[Row]:
        """Write texts; each is given back when it is finished. `stopped` is asked after each token of each."""
        ...

    def log_odds(self, texts: list[Text]) -> list[Scored]:
        """What the model says of the tokens that go on from each beginning; see `Decoder.log_odds`."""
        ...


class RunWriter:
    """A run's model, or this rank's part of it: then all ranks give the same requests and get the same rows."""

    slides, framed = True, False  # no document begins with such a token in training

    def __init__(
        self,
        stage: Stage,
        tokeniser: PreTrainedTokenizerFast,
        line: Line = Line(),  # noqa: B008  # it is frozen
        shares: Axis = Axis(),  # noqa: B008
    ) -> None:
        self.stage, self.tokeniser, self.line, self.shares = stage, tokeniser, line, shares
        self.context = stage.config.seq_length

    def write(self, requests: list[Request], sampling: Sampling, stopped: Stopped) -> Iterator[Row]:
        """See `Writer`. Rows enter in the order of the requests and leave as they are finished. A search with beams
        goes through one after the other, and asks nobody whether one is finished."""
        columns = min(self.context, max(len(request.prompt) + request.most for request in requests))
        if sampling.beams > 1:
            for request in requests:
                decoder = Decoder(self.stage, sampling.beams, columns, self.line)
                yield search(decoder, odds_of(self.tokeniser, sampling, decoder.device), request, sampling.beams)
            return
        batches = len(self.line.ranks)  # as many as stages, so that no stage waits for the others
        rows = max(1, min(-(-len(requests) // batches), self._rows(columns)))
        decoders = [Decoder(self.stage, rows, columns, self.line) for _ in range(batches)]
        odds = odds_of(self.tokeniser, sampling, decoders[0].device)
        yield from write(decoders, odds, requests, stopped)

    def log_odds(self, texts: list[Text]) -> list[Scored]:
        """See `Writer`."""
        return Decoder(self.stage, 0, 0, self.line).log_odds(texts, tokenisers.entries(self.tokeniser))

    def _rows(self, columns: int) -> int:
        """Texts of each batch: as the fullest rank has room for, so that all ranks say the same."""
        batches, element = len(self.line.ranks), next(self.stage.parameters()).element_size()
        work = decode_work(self.stage.config, Layout(tp=self.stage.parallel.tp.size, pp=batches), element, 1, 1)
        usable = self._usable()
        if usable is not None:
            return max(1, most_rows(work, usable, columns, columns))
        each = columns * max(float(cache_bytes(work, float(stage))) for stage in range(batches))
        return max(1, min(MOST_ROWS, int(CACHE_BYTES // each)) // batches)

    def _usable(self) -> float | None:
        """Bytes of a GPU that weights, caches and all else may take, on the fullest rank; None on a CPU."""
        device = next(self.stage.parameters()).device
        if device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(device)
        least = torch.tensor([USABLE_SHARE * (free + torch.cuda.memory_reserved(device))], device=device)
        for axis in (self.stage.parallel.tp, Axis(len(self.line.ranks), group=self.line.group)):
            if axis.size > 1:
                dist.all_reduce(least, dist.ReduceOp.MIN, group=axis.group)
        return least.item()


def odds_of(tokeniser: PreTrainedTokenizerFast, sampling: Sampling, device: torch.device) -> Odds:
    """What is drawn from: the ids that a tokeniser can read."""
    silent = torch.full((tokenisers.entries(tokeniser),), -torch.inf)
    silent[sorted(tokeniser.get_vocab().values())] = 0
    return Odds(sampling, silent.to(device), biased(tokeniser, sampling), tokeniser.eos_token_id)


def biased(tokeniser: PreTrainedTokenizerFast, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The tokens of each biased text, and what is added to the score of the last of them.

    Errors: `UserError` for a text that has none.
    """
    found = {tuple(encode(tokeniser, text)): value for text, value in sampling.bias}
    if () in found:
        raise UserError("--bias has a text without a token of this tokeniser; give another")
    return found


def encode(tokeniser: PreTrainedTokenizerFast, text: str, special: bool = False, framed: bool = False) -> list[int]:
    """The tokens of a text. The name of a special token is plain text unless `special` says otherwise."""
    found: list[int] = tokeniser(text, add_special_tokens=framed, split_special_tokens=not special)["input_ids"]
    return found


def decode(tokeniser: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """The text of tokens, without the names of special ones."""
    return str(tokeniser.decode(tokens, skip_special_tokens=True))
