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
from support.errors import UserError
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


def strangers(settings: list[str], json: dict[str, Any], fingerprint: str) -> str:
    """What a rank says where the last one was told something else than the others."""
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    recipe = override(load("tiny"), settings if last else [])
    run = SimpleNamespace(recipe=recipe, engine=SimpleNamespace(json=json if last else {}), max_steps=None)
    try:
        check_alike(run, SimpleNamespace(fingerprint=fingerprint if last else "a"))  # type: ignore[arg-type]
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "json", "fingerprint", "words"),
    [
        ([], {}, "b", "rank 1 has prepared other data than rank 0"),
        (["seed=5"], {}, "a", "rank 1 has another recipe seed than rank 0; start all ranks with the same flags"),
        (["optimizer.lr=1"], {}, "a", "rank 1 has another recipe optimizer lr than rank 0"),
        ([], {"gradient_clipping": 0.5}, "a", "rank 1 has another DeepSpeed JSON gradient_clipping than rank 0"),
        ([], {}, "a", ""),
    ],
)
def test_ranks_that_were_told_something_else_do_not_start(
    settings: list[str], json: dict[str, Any], fingerprint: str, words: str
) -> None:
    for said in run_ranks(2, strangers, settings, json, fingerprint):
        assert said.startswith(words) and bool(said) == bool(words)


def test_masked_validation_guesses_every_token_once_and_no_padding() -> None:
    tokens = np.arange(100, 110)
    samples, mask = windows(np.insert(tokens, 0, 0), 4)
    recipe = override(load("tiny"), ["model.objective=masked", "data.masked_share=1", "model.seq_length=4"])
    made = SimpleNamespace(
        training=lambda *_: None,
        held_out=lambda *_: (samples, mask),
        end_of_document=0,
        entries=110,
        taught=[None],
    )
    batch = Source(recipe, made).validation(list(range(len(samples) + 1)))
    assert batch.labels_BS[batch.weights_BS > 0].tolist() == tokens.tolist()


def test_a_branch_with_other_data_reads_them_from_their_start() -> None:
    """Whatever its position in the run: what its parent read counts for budget and schedule only."""
    recipe = override(load("tiny"), ["model.seq_length=4"])
    counts = SimpleNamespace(counts=lambda count: [count])
    stream = SimpleNamespace(
        batch=lambda first, count: np.arange(first, first + count)[:, None] + np.zeros((1, 5), int)
    )
    stream.blend = counts
    made = SimpleNamespace(
        training=lambda *_: stream,
        held_out=lambda *_: windows(np.arange(9), 4),
        end_of_document=0,
        entries=9,
        taught=[None],
    )
    whole, new = Source(recipe, made), Source(recipe, made, data_from=96)
    assert new.training(96, 3).tokens_BS.tolist() == whole.training(0, 3).tokens_BS.tolist()
    assert whole.training(96, 1).tokens_BS[0, 0] == 96 and new.samples_by_part(100) == [4]
