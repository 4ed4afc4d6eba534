"""Reading tokens, and the scores of the next ones, by all ranks of a model together.

Every rank calls the same methods with the same arguments. What the last stage finds out, the others are told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from inference.decode.cache import Cache
from inference.decode.stage import Stage
from model.gpt import Remember, prefix_mask
from model.layout import Layout

READ = 2**15  # tokens that are read in one pass
READ_ON_CPU = 2**12  # the same where texts are scored: what its caches hold, which is twice as fast as 2**15
TOGETHER = 16  # columns that a CPU sums in one go, see `Decoder._up`
SCORED = 2**24  # scores of ids that are held at once where texts are scored: 64 MB in fp32


@dataclass(frozen=True)
class Scored:
    """What a model says of tokens behind a beginning: the log-probability of all of them, in nats, and whether each is
    the likeliest where it stands."""

    total: float
    greedy: bool


@dataclass(frozen=True)
class Line:
    """A rank's place in its pipeline: the ranks of the stages in order, which of them it is, and their group."""

    ranks: tuple[int, ...] = (0,)
    stage: int = 0
    group: Any = None

    @property
    def alone(self) -> bool:
        return len(self.ranks) == 1

    def from_last(self, found: Tensor) -> Tensor:
        """What the last stage holds, on all stages; the others give a tensor of that shape."""
        if not self.alone:
            dist.broadcast(found, self.ranks[-1], group=self.group)
        return found

    def telling(self, found: Tensor) -> Callable[[], Tensor]:
        """`from_last`, begun: it is over when what this returns was called. The last stage goes on meanwhile."""
        if self.alone or self.stage < len(self.ranks) - 1:
            return lambda: self.from_last(found)
        told = dist.broadcast(found, self.ranks[-1], group=self.group, async_op=True)

        def wait() -> Tensor:
            told.wait()
            return found

        return wait


def line_of(layout: Layout) -> Line:
    """This rank's place in its pipeline; collective, and makes the group."""
    from model.grid import split

    groups = layout.groups(dist.get_world_size())["pipeline"]
    mine = next(ranks for ranks in groups if dist.get_rank() in ranks)
    return Line(tuple(mine), mine.index(dist.get_rank()), split(groups) if len(mine) > 1 else None)


class Decoder:
    """Rows of tokens that grow: a stage, its cache of `rows` x `columns`, and how many tokens of each row were read."""

    def __init__(self, stage: Stage, rows: int, columns: int, line: Line = Line()) -> None:
        config, self.stage, self.line = stage.config, stage, line
        weight = next(stage.parameters())
        self.device, self.dtype, self.rows, self.columns = weight.device, weight.dtype, rows, columns
        heads = config.num_attention_heads // stage.parallel.tp.size
        self.together = TOGETHER if self.device.type == "cpu" else 1
        shape = (rows, heads, self._up(columns), config.head_size)
        self.cache = Cache(len(stage.blocks), shape, self.dtype, self.device)
        self.lengths: list[int] = []

    @torch.inference_mode()
    def read(self, texts: list[list[int]]) -> Tensor | None:
        """Read the first tokens of new rows, behind the rows in use; at most as many as are free.

        They are the prefix of a model that has one: then they all see each other. Texts of about one length are to
        stand together: on a CPU others are not read in one pass. Returns the scores of what comes next [len(texts), V]
        on the last stage, None on the others.
        """
        found: list[Tensor] = []
        for some in self._read_together(texts):
            x_BSH = self._pass(some, list(map(len, some)), self.cache.reads(len(self.lengths)))
            self.lengths += map(len, some)
            if self.stage.last:
                end_B = torch.tensor([len(text) - 1 for text in some], device=self.device)
                x_BSH = x_BSH[torch.arange(len(some), device=self.device), end_B].unsqueeze(1)
                found.append(self.stage.logits(x_BSH)[:, 0])
        return torch.cat(found) if found else None

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> Tensor | None:
        """Read one more token of each row in use; none may fill its columns. Returns what `read` does."""
        remembers, unseen_BSS = self.cache.steps(self.lengths, self._up(max(self.lengths) + 1))
        places_BS = torch.tensor(self.lengths, device=self.device).unsqueeze(1)
        tokens_BS = torch.tensor(tokens, device=self.device).unsqueeze(1)
        x_BSH = self._through(tokens_BS, places_BS, unseen_BSS, remembers)
        self.lengths = [length + 1 for length in self.lengths]
        return self.stage.logits(x_BSH)[:, 0] if self.stage.last else None

    def leave(self, row: int) -> int:
        """Free a row; the last one takes its place. Returns the number that this one had."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            self.cache.move(last, row, length)
            self.lengths[row] = length
        return last

    def reorder(self, sources: list[int]) -> None:
        """The rows in use become copies of these rows, all of one length."""
        self.cache.reorder(sources, self.lengths[0])
        self.lengths = [self.lengths[0]] * len(sources)

    @torch.inference_mode()
    def log_odds(self, texts: list[tuple[list[int], list[int]]], entries: int) -> list[Scored]:
        """For each beginning and what goes on from it: what the model says of the latter.

        Ids from `entries` on are left out. Both together have at most one token more than the context: the last one is
        not read. Texts of about the same length are read together. The beginning is the prefix of a model that has one.
        """
        order = sorted(range(len(texts)), key=lambda at: -sum(map(len, texts[at])))
        found_2B = torch.zeros(2, len(texts), dtype=torch.float64, device=self.device)  # sums; tokens not the likeliest
        for some in self._scored_together([texts[at] for at in order]):
            places = order[: len(some)]
            order = order[len(some) :]
            x_BSH = self._pass([[*before, *after][:-1] for before, after in some], [len(a) for a, _ in some], None)
            if self.stage.last:
                self._add_odds(found_2B, places, some, x_BSH, entries)
        totals, missed = self.line.from_last(found_2B).tolist()
        return [Scored(total, not misses) for total, misses in zip(totals, missed, strict=True)]

    def _scored_together(self, texts: list[tuple[list[int], list[int]]]) -> Iterator[list[tuple[list[int], list[int]]]]:
        """Texts, the longest first, in batches whose tokens are read in one pass and whose scores have room."""
        room, first = max(1, SCORED // self.stage.config.padded_vocab_size), 0
        read = READ if self.device.type == "cuda" else min(READ, READ_ON_CPU)
        while first < len(texts):
            most, scored, stop = max(1, read // sum(map(len, texts[first]))), 0, first
            while stop < min(len(texts), first + most) and (stop == first or scored + len(texts[stop][1]) <= room):
                scored += len(texts[stop][1])
                stop += 1
            yield texts[first:stop]
            first = stop

    def _add_odds(
        self,
        found_2B: Tensor,
        places: list[int],
        texts: list[tuple[list[int], list[int]]],
        x_BSH: Tensor,
        entries: int,
    ) -> None:
        """Add what the last stage says of texts at their `places`; only what is asked about gets scores."""
        row_N = torch.tensor([row for row, (_, after) in enumerate(texts) for _ in after], device=self.device)
        column_N = torch.tensor(
            [len(before) - 1 + at for before, after in texts for at in range(len(after))], device=self.device
        )
        label_N = torch.tensor([token for _, after in texts for token in after], device=self.device)
        odds_NE = self.stage.logits(x_BSH[row_N, column_N].unsqueeze(0))[0, :, :entries].float().log_softmax(-1)
        each_2N = torch.stack((odds_NE.gather(1, label_N[:, None])[:, 0], (odds_NE.argmax(-1) != label_N).float()))
        found_2B.index_add_(1, torch.tensor(places, device=self.device)[row_N], each_2N.double())

    def _up(self, columns: int) -> int:
        """So many columns, rounded up to those that a CPU sums in one go: the order of a sum depends on how many there
        are beyond. So a text's scores are the same to the last bit, whatever is written beside it."""
        return -(-columns // self.together) * self.together

    def _read_together(self, texts: list[list[int]]) -> Iterator[list[list[int]]]:
        """Texts in batches whose tokens are read in one pass; on a CPU with as many columns as each would have alone,
        which decide how the sums are cut."""
        for _, alike in groupby(texts, lambda text: self._up(len(text)) if self.together > 1 else 0):
            left = list(alike)
            most = max(1, READ // max(map(len, left)))
            yield from (left[first : first + most] for first in range(0, len(left), most))

    def _pass(self, texts: list[list[int]], prefixes: list[int], remembers: list[Remember] | None) -> Tensor:
        """Read texts from their first token on. Short ones are filled up behind: nothing sees what is to its right, but
        for the tokens of a prefix, and those see their prefix alone."""
        longest = self._up(max(map(len, texts)))
        tokens_BS = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=self.device)
        place_S = torch.arange(longest, device=self.device).clamp(max=self.stage.config.seq_length - 1)
        places_BS = place_S.expand(len(texts), -1)
        visible_BSS = None
        if self.stage.config.objective == "prefix" and min(prefixes) < longest:  # else all tokens see all
            visible_BSS = prefix_mask(torch.tensor(prefixes, device=self.device), longest)
        return self._through(tokens_BS, places_BS, visible_BSS, remembers)

    def _through(
        self, tokens_BS: Tensor, places_BS: Tensor, mask_BSS: Tensor | None, remembers: list[Remember] | None
    ) -> Tensor:
        """Get what the stage before gives, compute, and pass it on."""
        line, x = self.line, tokens_BS
        if not self.stage.first:
            x = torch.empty(*tokens_BS.shape, self.stage.config.hidden_size, dtype=self.dtype, device=self.device)
            dist.recv(x, line.ranks[line.stage - 1])
        x_BSH: Tensor = self.stage(x, places_BS, mask_BSS, remembers)
        if not self.stage.last:
            dist.send(x_BSH.contiguous(), line.ranks[line.stage + 1])
        return x_BSH
