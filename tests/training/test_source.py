import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.samples.sampling import windows
from model.engine.engine import MicroBatch
from recipes.registry import load
from recipes.settings import override
from tests.distributed import run_ranks
from tests.patience import wait_until
from training.source import Ahead, Source, check_alike


def reader(asked: list[tuple[int, int]]) -> Any:
    def read(first: int, count: int) -> list[MicroBatch]:
        asked.append((first, count))
        if first >= 1000:
            raise ValueError("the shard is gone")
        tokens = torch.arange(first, first + count).view(-1, 1)
        return [MicroBatch(tokens, tokens + 1, tokens.float())]

    return read


def test_the_next_batch_is_read_while_the_step_computes() -> None:
    asked: list[tuple[int, int]] = []
    ahead = Ahead(reader(asked))
    ahead.take(0, 4, 6)
    wait_until(lambda: (4, 6) in asked, os.getpid())
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


def strangers(others: int) -> str:
    """What the ranks say where the last `others` of them hold other data."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        check_alike(SimpleNamespace(fingerprint="b" if rank >= world - others else "a"))
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_that_would_read_other_data_do_not_start() -> None:
    assert run_ranks(2, strangers, 0) == ["", ""]
    for said in run_ranks(2, strangers, 1):
        assert "rank 1 has prepared other data than rank 0" in said


def test_masked_validation_guesses_every_token_once_and_no_padding() -> None:
    tokens = np.arange(100, 110)
    samples, mask = windows(np.insert(tokens, 0, 0), 4)
    recipe = override(load("tiny"), ["model.objective=masked", "data.masked_share=1", "model.seq_length=4"])
    made = SimpleNamespace(
        training=lambda *_: None, held_out=lambda *_: (samples, mask), end_of_document=0, entries=110
    )
    batch = Source(recipe, made).validation(list(range(len(samples) + 1)))
    assert batch.labels_BS[batch.weights_BS > 0].tolist() == tokens.tolist()
