import time
from typing import Any

import pytest
import torch

from model.engine import Batch
from recipes.source import Ahead


def reader(asked: list[tuple[int, int]]) -> Any:
    def read(first: int, count: int) -> list[Batch]:
        asked.append((first, count))
        if first >= 1000:
            raise ValueError("the shard is gone")
        tokens = torch.arange(first, first + count).view(-1, 1)
        return [Batch(tokens, tokens + 1, tokens.float())]

    return read


def test_the_next_batch_is_read_while_the_step_computes() -> None:
    asked: list[tuple[int, int]] = []
    ahead = Ahead(reader(asked))
    ahead.take(0, 4, 6)
    deadline = time.monotonic() + 5
    while (4, 6) not in asked:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    (batch,) = ahead.take(4, 6, 6)
    assert batch.tokens_BS.flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert asked[:2] == [(0, 4), (4, 6)]


def test_another_batch_than_expected_is_read_anew() -> None:
    asked: list[tuple[int, int]] = []
    ahead = Ahead(reader(asked))
    ahead.take(0, 4, 4)
    (batch,) = ahead.take(4, 2, 2)
    assert batch.tokens_BS.flatten().tolist() == [4, 5]


def test_what_went_wrong_ahead_is_said_where_it_is_wanted() -> None:
    ahead = Ahead(reader([]))
    ahead.take(996, 4, 4)
    with pytest.raises(ValueError, match="the shard is gone"):
        ahead.take(1000, 4, 4)
