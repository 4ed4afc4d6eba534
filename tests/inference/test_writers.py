"""How many texts are written at once: as many as the fullest rank has room for."""

import dataclasses
from typing import Any

import pytest
import torch

from inference import writers
from inference.decode.decoder import Decoder, Line
from inference.decode.stage import Stage, blocks_of
from inference.writers import RunWriter
from model.config import GPTConfig
from model.parallel import SOLO
from planner.decoding import MOST_ROWS
from planner.memory import CONTEXT_BYTES, FRAGMENTED_SHARE

# Its head costs as much as several blocks, so the last of two stages has fewer.
UNEVEN = GPTConfig(num_layers=6, hidden_size=16, num_attention_heads=2, seq_length=64, vocab_size=500)


def writer(stage: int = 0, stages: int = 2, config: GPTConfig = UNEVEN) -> RunWriter:
    with torch.device("meta"):
        built = Stage(config, SOLO, blocks_of(config, stages, stage))
    nobody: Any = None
    return RunWriter(built, nobody, Line(tuple(range(stages)), stage))


def test_all_stages_say_what_the_fullest_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(blocks_of(UNEVEN, 2, stage)) for stage in range(2)]
    assert sizes[0] > UNEVEN.num_layers // 2
    subject = writer()
    cache = Decoder(subject.stage, 5, 40).cache
    held = sum(each.numel() * each.element_size() for each in (*cache.k, *cache.v))
    monkeypatch.setattr(writers, "CACHE_BYTES", 2 * held)  # two batches of five rows
    assert [writer(stage)._rows(40) for stage in range(2)] == [5, 5]
    monkeypatch.setattr(writers, "CACHE_BYTES", 2 * held - 1)
    assert [writer(stage)._rows(40) for stage in range(2)] == [4, 4]
    monkeypatch.setattr(writers, "CACHE_BYTES", 10**12)
    assert writer()._rows(40) == writers.MOST_ROWS // 2
    monkeypatch.setattr(writers, "CACHE_BYTES", 0)
    assert writer()._rows(40) == 1


def test_on_gpus_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(UNEVEN, hidden_size=1024, seq_length=1024)
    weights = sum(p.numel() * p.element_size() for p in writer(config=config).stage.parameters())
    cache = Decoder(writer(config=config).stage, 1, 1000).cache
    row = sum(each.numel() * each.element_size() for each in (*cache.k, *cache.v))
    reading = 32_000 * 4 * (5 * config.hidden_size + 2 * config.ffn_hidden_size)
    most = CONTEXT_BYTES + weights + (1 + FRAGMENTED_SHARE) * (reading + 2 * 40 * row)  # two batches of forty rows
    for usable, rows in ((most, 40), (most - 1, 39), (most + row, 40), (0.0, 1)):
        monkeypatch.setattr(RunWriter, "_usable", lambda self, usable=usable: usable)
        assert [writer(stage, config=config)._rows(1000) for stage in range(2)] == [rows, rows]
    monkeypatch.setattr(RunWriter, "_usable", lambda self: 80e9)
    assert writer()._rows(40) == MOST_ROWS // 2
