"""A prefix model writes what the plain forward pass says: the prompt is the prefix, what follows is causal."""

import dataclasses
from pathlib import Path

import pytest
import torch

from inference.decode.beam import search
from inference.decode.decoder import Decoder, line_of
from inference.decode.rows import Request
from inference.decode.stage import load_stage
from inference.sampling import Sampling
from model.gpt import GPT
from model.grid import make_grid
from model.layout import Layout
from tests.distributed import run_ranks
from tests.inference import written
from tests.inference.decode.test_decode import BIAS, CONFIG, END, ENTRIES, TOLERANCE, model, odds, prompts, texts

PREFIX = dataclasses.replace(CONFIG, objective="prefix")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written.checkpoint(tmp_path_factory.mktemp("run"), model(PREFIX), 7, tp=4, data=3)


def scores(plain: GPT, tokens: list[int], prefix: int) -> torch.Tensor:
    """The scores of what comes after each token, without a cache."""
    with torch.no_grad():
        return plain(torch.tensor([tokens]), torch.tensor([prefix]))[0, :, :ENTRIES]


def by_hand(prompt: tuple[int, ...], most: int) -> list[int]:
    """The likeliest tokens one after the other; where the context is full, the window that is read anew is a prefix."""
    plain, tokens, window, prefix = model(PREFIX), list(prompt), list(prompt), len(prompt)
    for _ in range(most):
        if len(window) > 48:
            window = tokens[: min(len(prompt), 12)] + tokens[-24:]
            prefix = len(window)
        token = int(scores(plain, window, prefix)[-1].argmax())
        tokens, window = [*tokens, token], [*window, token]
        if token == END:
            break
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def wanted() -> list[list[int]]:
    found = [by_hand(prompt, 16) for prompt in prompts()]
    assert len({tuple(each) for each in found}) == len(found)
    return found


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_texts_are_those_of_the_plain_model(rows: int, checkpoint: Path, wanted: list[list[int]]) -> None:
    """Rows of many lengths: what fills up the short ones is seen by none."""
    assert texts(load_stage(PREFIX, checkpoint), prompts(), rows=rows) == wanted
    causal = texts(load_stage(CONFIG, checkpoint), prompts())
    assert [a == b for a, b in zip(causal, wanted, strict=True)].count(True) <= 1  # a prompt of one token is causal


def test_scores_with_a_cache_are_those_without(checkpoint: Path) -> None:
    plain, subject = model(PREFIX), Decoder(load_stage(PREFIX, checkpoint), 8, 48)
    rows = [list(prompt) for prompt in prompts()]
    lengths, found = list(map(len, rows)), subject.read(rows)
    for turn in range(4):
        for row, length, each in zip(rows, lengths, found, strict=True):
            exact = scores(plain, row, length)[-1]
            assert (each[:ENTRIES] - exact).abs().max() < TOLERANCE * exact.abs().max()
        for number, row in enumerate(rows):
            row.append((7 * number + turn) % ENTRIES)
        found = subject.step([row[-1] for row in rows])


def test_a_text_past_the_context_reads_its_window_as_a_prefix(checkpoint: Path) -> None:
    stage = load_stage(PREFIX, checkpoint)
    exact = by_hand(prompts()[5], 70)
    assert len(exact) > 60
    assert texts(stage, prompts()[5:6], most=70) == [exact]
    assert texts(stage, prompts(), most=70, rows=3)[5] == exact


def pairs() -> list[tuple[list[int], list[int]]]:
    return [(list(prompt[: 1 + n // 2]), list(prompt[1 + n // 2 :])) for prompt in prompts() if (n := len(prompt)) > 2]


def test_log_odds_are_behind_a_prefix(checkpoint: Path) -> None:
    plain, found = model(PREFIX), Decoder(load_stage(PREFIX, checkpoint), 0, 0).log_odds(pairs(), ENTRIES)
    for (before, after), scored in zip(pairs(), found, strict=True):
        odds_SE = scores(plain, [*before, *after], len(before)).log_softmax(-1)
        exact = sum(float(odds_SE[len(before) - 1 + place, token]) for place, token in enumerate(after))
        assert scored.total == pytest.approx(exact, rel=1e-5)


def test_a_search_with_beams_finds_no_worse_text_than_the_likeliest_tokens(checkpoint: Path) -> None:
    """Its score is that of the plain model, and two beams of all texts of two tokens are all that there are."""
    stage, prompt, plain = load_stage(PREFIX, checkpoint), prompts()[3], model(PREFIX)
    beams = ENTRIES
    row = search(Decoder(stage, beams, 48), odds(Sampling(beams=beams)), Request(0, prompt, 0, 2), beams)
    ways = {}
    first = scores(plain, list(prompt), len(prompt))[-1].log_softmax(-1)
    for token in range(ENTRIES):
        if token == END:
            ways[(token,)] = float(first[token])
            continue
        second = scores(plain, [*prompt, token], len(prompt))[-1].log_softmax(-1)
        ways |= {(token, other): float(first[token] + second[other]) / 2 for other in range(ENTRIES)}
    assert tuple(row.new) == max(ways, key=lambda way: ways[way])


def decoded(layout: Layout, checkpoint: Path) -> tuple[list[list[int]], list[float], list[int]]:
    grid, line = make_grid(layout), line_of(layout)
    stage = load_stage(PREFIX, checkpoint, grid.parallel, layout.pp, grid.stage)
    beam = search(Decoder(stage, 3, 48, line), odds(Sampling(beams=3), BIAS), Request(0, prompts()[4], 0, 8), 3)
    odds_of_pairs = [each.total for each in Decoder(stage, 0, 0, line).log_odds(pairs(), ENTRIES)]
    return texts(stage, prompts(), rows=3, line=line, batches=layout.pp), odds_of_pairs, beam.new


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2)], ids=["tp2", "pp2", "tp2pp2"])
def test_ranks_write_together(layout: Layout, checkpoint: Path, wanted: list[list[int]]) -> None:
    stage = load_stage(PREFIX, checkpoint)
    beam = search(Decoder(stage, 3, 48), odds(Sampling(beams=3), BIAS), Request(0, prompts()[4], 0, 8), 3)
    alone = [each.total for each in Decoder(stage, 0, 0).log_odds(pairs(), ENTRIES)]
    for found, theirs, beams in run_ranks(layout.tp * layout.pp, decoded, layout, checkpoint):
        assert found == wanted and beams == beam.new
        assert theirs == pytest.approx(alone, rel=TOLERANCE)
