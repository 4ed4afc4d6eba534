"""No stage of a pipeline waits for another one, as long as there are as many batches as stages."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.decode.draw import Odds
from inference.decode.rows import Request, write
from inference.sampling import Sampling

NEW = 20  # tokens of each text


@dataclass
class Rank:
    """A stage by a clock of its own, on which a pass takes one and nothing else does. Messages carry the time."""

    stage: int
    ranks: "list[Rank]"
    clock: int = 0
    passes: Queue[int] = field(default_factory=Queue)
    told: Queue[tuple[int, Tensor]] = field(default_factory=Queue)

    @property
    def last(self) -> bool:
        return self is self.ranks[-1]

    def work(self) -> None:
        """Get what the stage before gives, compute, and pass it on."""
        if self.stage:
            self.clock = max(self.clock, self.passes.get(timeout=60))
        self.clock += 1
        if not self.last:
            self.ranks[self.stage + 1].passes.put(self.clock)

    def telling(self, found: Tensor) -> Callable[[], Tensor]:
        """As `Line.telling`."""
        if self.last:
            for rank in self.ranks[:-1]:
                rank.told.put((self.clock, found))
            return lambda: found

        def wait() -> Tensor:
            time, ids = self.told.get(timeout=60)
            self.clock = max(self.clock, time)
            return ids

        return wait


class Timed:
    """A decoder of one row that computes nothing."""

    rows, columns, device = 1, 100, torch.device("cpu")

    def __init__(self, rank: Rank) -> None:
        self.line, self.lengths = rank, list[int]()

    def read(self, texts: list[list[int]]) -> Tensor | None:
        self.lengths += map(len, texts)
        return self._scores()

    def step(self, tokens: list[int]) -> Tensor | None:
        self.lengths = [length + 1 for length in self.lengths]
        return self._scores()

    def leave(self, row: int) -> int:
        return self.lengths.pop() * 0

    def _scores(self) -> Tensor | None:
        self.line.work()
        return torch.tensor([[0.0, 1.0, 0.0]]) if self.line.last else None


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_every_stage_works_all_the_time(stages: int) -> None:
    ranks: list[Rank] = []
    ranks += [Rank(stage, ranks) for stage in range(stages)]
    texts: list[list[list[int]]] = []

    def job(rank: Rank) -> None:
        decoders: Any = [Timed(rank) for _ in range(stages)]
        requests = [Request(number, (1,), 0, NEW) for number in range(2 * stages)]
        odds = Odds(Sampling(greedy=True), torch.zeros(3), {}, 0)
        texts.append([row.new for row in write(decoders, odds, requests, lambda row: False)])

    threads = [threading.Thread(target=job, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert texts == [[[1] * NEW] * 2 * stages] * stages
    # Two rounds of texts, a pass of each batch for each token. The last stage begins as the first pass arrives, and all
    # hear of its last one.
    assert [rank.clock for rank in ranks] == [2 * NEW * stages + stages - 1] * stages
