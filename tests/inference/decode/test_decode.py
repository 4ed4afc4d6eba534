"""Decoding in the model's own layers gives what transformers' generate gives on the export."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.decode import decoder, packed
from inference.decode.beam import search
from inference.decode.decoder import Decoder, Line, line_of
from inference.decode.draw import Odds
from inference.decode.rows import Request, write
from inference.decode.stage import Stage, blocks_of, live_stage, load_stage
from inference.sampling import Sampling
from model.config import GPTConfig
from model.gpt import GPT
from model.grid import make_grid
from model.huggingface import to_hf
from model.init import init_weights
from model.layout import Layout
from model.parallel import SOLO
from tests.distributed import run_ranks
from tests.inference import written

CONFIG = GPTConfig(num_layers=3, hidden_size=32, num_attention_heads=4, seq_length=48, vocab_size=90)
ENTRIES, END = 80, 0
LENGTHS = (5, 1, 17, 9, 2, 17, 30, 12)
GREEDY, BIAS = Sampling(greedy=True), {(END,): 2.5}
# Scores are sums over paths of products of fp32. They come out of other orders of additions, which move a sum of n
# terms by n ulps at most: the longest has 4 x 32 terms; three layers and the head, of four sums each.
TOLERANCE = 4 * 32 * 4 * 4 * 2**-24


def model(config: GPTConfig = CONFIG) -> GPT:
    result = GPT(config).eval()
    # Large weights, so that the scores of ids are far apart and greedy texts are not one token over and over.
    init_weights(
        {p: name for name, p in result.named_parameters()}, dataclasses.replace(config, init_method_std=0.3), 1
    )
    return result


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[tuple[int, ...]]:
    draws = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(1, ENTRIES, (length,), generator=draws).tolist()) for length in lengths]


def odds(sampling: Sampling = GREEDY, bias: dict[tuple[int, ...], float] | None = None) -> Odds:
    return Odds(sampling, torch.zeros(ENTRIES), bias or {}, END)


def texts(
    stage: Stage,
    some: list[tuple[int, ...]],
    sampling: Sampling = GREEDY,
    rows: int = 8,
    line: Line = Line(),  # noqa: B008
    most: int = 16,
    batches: int = 1,
) -> list[list[int]]:
    """The new tokens of each prompt, with the next seed for each further sample; `rows` at once in each batch."""
    requests = [
        Request(number * sampling.samples + sample, prompt, seed, most)
        for number, prompt in enumerate(some)
        for sample, seed in enumerate(sampling.seeds)
    ]
    columns = min(stage.config.seq_length, max(map(len, some)) + most)
    subjects = [Decoder(stage, rows, columns, line) for _ in range(batches)]
    found = {row.request.number: row.new for row in write(subjects, odds(sampling), requests, lambda row: False)}
    return [found[request.number] for request in requests]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As four tensor ranks, each beside two data ranks, have written it."""
    return written.checkpoint(tmp_path_factory.mktemp("run"), model(), 7, tp=4, data=3)


@pytest.fixture(scope="module")
def theirs() -> list[list[int]]:
    """What transformers writes behind each prompt."""
    hf, found = to_hf(model(), ENTRIES, END, END), []
    for prompt in prompts():
        inputs = torch.tensor([prompt])
        settings: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": END}
        output = hf.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
        found.append(output[0, len(prompt) :].tolist())
    assert len({tuple(each) for each in found}) == len(found) and any(len(set(each)) > 4 for each in found)
    return found


@pytest.mark.parametrize(("rows", "read"), [(1, 2**15), (3, 2**15), (8, 2**15), (8, 40)])
def test_greedy_texts_are_those_of_transformers(
    rows: int, read: int, checkpoint: Path, theirs: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "READ", read)  # tokens in one pass
    stage = load_stage(CONFIG, checkpoint)
    assert texts(stage, prompts(), rows=rows) == theirs
    assert texts(stage, prompts()[2:3], rows=rows) == theirs[2:3]


def test_scores_with_a_cache_are_those_without(checkpoint: Path) -> None:
    plain, stage = model(), load_stage(CONFIG, checkpoint)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, dict(stage.named_parameters())[name]), name
    subject, rows = Decoder(stage, 8, 48), [list(prompt) for prompt in prompts()]
    found = subject.read(rows)
    for turn in range(6):
        for row, scores in zip(rows, found, strict=True):
            with torch.no_grad():
                wanted = plain(torch.tensor([row]))[0, -1]
            assert (scores - wanted).abs().max() < TOLERANCE * wanted.abs().max()
        for number, row in enumerate(rows):
            row.append((7 * number + turn) % ENTRIES)
        if turn == 3:  # a row leaves, and the last one takes its place
            subject.leave(1)
            rows[1] = rows.pop()
        found = subject.step([row[-1] for row in rows])


def decoded(layout: Layout, checkpoint: Path, sampling: Sampling) -> tuple[list[list[int]], list[float]]:
    grid, line = make_grid(layout), line_of(layout)
    stage = load_stage(CONFIG, checkpoint, grid.parallel, layout.pp, grid.stage)
    pairs = [(list(prompt[:1]), list(prompt[1:])) for prompt in prompts() if len(prompt) > 1]
    scores = [each.total for each in Decoder(stage, 0, 0, line).log_odds(pairs, ENTRIES)]
    return texts(stage, prompts(), sampling, rows=3, line=line, batches=layout.pp), scores


LAYOUTS = [Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"tp{layout.tp}pp{layout.pp}")
@pytest.mark.parametrize("greedy", [True, False])
def test_fewer_ranks_than_trained_it_write_what_one_does(
    layout: Layout, greedy: bool, checkpoint: Path, theirs: list[list[int]]
) -> None:
    sampling = GREEDY if greedy else Sampling(seed=3, samples=2, top_k=20, top_p=0.95)
    stage = load_stage(CONFIG, checkpoint)
    wanted = theirs if greedy else texts(stage, prompts(), sampling)
    pairs = [(list(prompt[:1]), list(prompt[1:])) for prompt in prompts() if len(prompt) > 1]
    scores = [each.total for each in Decoder(stage, 0, 0).log_odds(pairs, ENTRIES)]
    for found, theirs_scores in run_ranks(layout.tp * layout.pp, decoded, layout, checkpoint, sampling):
        assert found == wanted
        assert theirs_scores == pytest.approx(scores, rel=TOLERANCE)


def test_a_text_does_not_depend_on_what_is_written_beside_it(checkpoint: Path) -> None:
    """A function of seed and prompt: batch, order and company change nothing."""
    stage, sampling = load_stage(CONFIG, checkpoint), Sampling(seed=11, samples=3, top_p=0.9, temperature=1.1)
    together = texts(stage, prompts(), sampling)
    assert len({tuple(each) for each in together}) == len(together)
    assert texts(stage, prompts(), sampling, rows=1) == texts(stage, prompts(), sampling, rows=5) == together
    backwards = texts(stage, prompts()[::-1], sampling, rows=4)
    assert [backwards[3 * i : 3 * i + 3] for i in range(8)][::-1] == [together[3 * i : 3 * i + 3] for i in range(8)]
    alone = texts(stage, prompts()[4:5], dataclasses.replace(sampling, seed=12, samples=1))
    assert alone == [together[13]]


@pytest.mark.skipif(not packed._can_pack(), reason="this torch cannot pack weights")
def test_scores_do_not_depend_on_what_is_beside_them_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a drawn text is the same in any batch. Sums are cut in several ways here: long prompts, wide layers."""
    config = GPTConfig(num_layers=1, hidden_size=768, num_attention_heads=12, seq_length=210, vocab_size=90)
    parameters = model(config).state_dict()
    stage = live_stage(config, SOLO, 1, 0, parameters)
    packed.pack(stage)
    found: dict[tuple[int, ...], set[bytes]] = {}
    scores = Odds.scores

    def noted(self: Odds, logits_BV: torch.Tensor, histories: list[list[int]]) -> torch.Tensor:
        for row, history in enumerate(histories):
            found.setdefault(tuple(history), set()).add(logits_BV[row].numpy().tobytes())
        return scores(self, logits_BV, histories)

    monkeypatch.setattr(Odds, "scores", noted)
    some, how = prompts((1, 16, 17, 40, 195, 207)), Sampling(temperature=2.0)
    together = texts(stage, some, how, rows=4, most=8)
    assert together == [texts(stage, [one], how, rows=1, most=8)[0] for one in some]
    assert len(found) > 40 and all(len(each) == 1 for each in found.values())


def test_log_odds_by_hand(checkpoint: Path) -> None:
    before, after = [4, 9], [7, 1, 3]
    with torch.no_grad():
        odds_SV = model()(torch.tensor([[*before, *after]]))[0, :, :ENTRIES].log_softmax(-1)
    wanted = sum(float(odds_SV[place, token]) for place, token in enumerate(after, 1))
    subject = Decoder(load_stage(CONFIG, checkpoint), 0, 0)
    alone, beside = (
        subject.log_odds([(before, after)], ENTRIES),
        subject.log_odds([([1], [2] * 9), (before, after)], ENTRIES),
    )
    assert alone[0].total == pytest.approx(wanted, rel=1e-5) and beside[1].total == pytest.approx(wanted, rel=1e-5)
    assert not alone[0].greedy and not beside[1].greedy
    likeliest = int(odds_SV[1].argmax())
    assert [each.greedy for each in subject.log_odds([(before, [likeliest]), (before, [likeliest, 3])], ENTRIES)] == [
        True,
        int(model()(torch.tensor([[*before, likeliest]]))[0, -1, :ENTRIES].argmax()) == 3,
    ]


def test_the_last_token_of_a_text_is_not_read(checkpoint: Path) -> None:
    """So a text of one token more than the context has a score; batches of any size give the same ones."""
    tokens = list(prompts((49,))[0])
    with torch.no_grad():
        odds_SV = model()(torch.tensor([tokens[:-1]]))[0, :, :ENTRIES].log_softmax(-1)
    wanted = sum(float(odds_SV[place - 1, tokens[place]]) for place in range(1, 49))
    subject = Decoder(load_stage(CONFIG, checkpoint), 0, 0)
    pairs = [(tokens[:1], tokens[1:]), (tokens[:40], tokens[40:]), ([5], [6]), (tokens[:48], tokens[48:])]
    together = [each.total for each in subject.log_odds(pairs, ENTRIES)]
    assert together[0] == pytest.approx(wanted, rel=1e-5)
    assert together == pytest.approx([subject.log_odds([pair], ENTRIES)[0].total for pair in pairs], rel=1e-5)


def test_a_text_past_the_context_reads_its_last_half_anew(checkpoint: Path) -> None:
    """By hand: no cache, and each next token from what the window then holds."""
    stage, plain, prompt = load_stage(CONFIG, checkpoint), model(), prompts()[2]
    (found,) = texts(stage, [prompt], most=90)
    tokens, window = list(prompt), list(prompt)
    for _ in range(90):
        if len(window) > 48:
            window = tokens[:12] + tokens[-24:]
        with torch.no_grad():
            token = int(plain(torch.tensor([window]))[0, -1, :ENTRIES].argmax())
        tokens, window = [*tokens, token], [*window, token]
        if token == END:
            break
    assert found == tokens[len(prompt) :] and len(found) > 60
    for batches in (1, 3):
        beside = texts(stage, prompts(), most=90, rows=3, batches=batches)
        assert beside[2] == found


def beam(layout: Layout, checkpoint: Path, beams: int, most: int) -> list[list[int]]:
    """What a search finds behind each prompt; an end is likelier than by chance, so that texts end early."""
    grid, line = make_grid(layout), line_of(layout)
    stage = load_stage(CONFIG, checkpoint, grid.parallel, layout.pp, grid.stage)
    return searched(stage, beams, most, line)


def searched(stage: Stage, beams: int, most: int, line: Line = Line()) -> list[list[int]]:  # noqa: B008
    rows = []
    for number, prompt in enumerate(prompts()):
        subject = Decoder(stage, beams, len(prompt) + most, line)
        rows.append(search(subject, odds(Sampling(beams=beams), BIAS), Request(number, prompt, 0, most), beams))
    return [row.new for row in rows]


@pytest.mark.parametrize("beams", [2, 5])
def test_a_search_with_beams_is_that_of_transformers(beams: int, checkpoint: Path) -> None:
    hf, found = to_hf(model(), ENTRIES, END, END), searched(load_stage(CONFIG, checkpoint), beams, 14)
    for prompt, ours in zip(prompts(), found, strict=True):
        inputs = torch.tensor([prompt])
        settings: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": END, "num_beams": beams}
        output = hf.generate(inputs, attention_mask=torch.ones_like(inputs), sequence_bias=BIAS, **settings)
        assert output[0, len(prompt) :].tolist() == ours
    assert len({len(each) for each in found}) > 2 and any(each[-1] == END for each in found)


def test_ranks_search_together(checkpoint: Path) -> None:
    alone = searched(load_stage(CONFIG, checkpoint), 3, 8)
    assert run_ranks(2, beam, Layout(pp=2), checkpoint, 3, 8) == [alone] * 2
    assert run_ranks(2, beam, Layout(tp=2), checkpoint, 3, 8) == [alone] * 2


def test_a_checkpoint_of_another_shape_is_one_line(checkpoint: Path) -> None:
    for change in ({"num_layers": 2}, {"hidden_size": 64}, {"seq_length": 40}):
        with pytest.raises(ValueError, match="use the recipe that wrote it"):
            load_stage(dataclasses.replace(CONFIG, **change), checkpoint)
    with pytest.raises(ValueError, match="a model of the masked objective cannot go on from a text"):
        load_stage(dataclasses.replace(CONFIG, objective="masked"), checkpoint)


def test_stages_have_every_block_once() -> None:
    for layers, stages in ((3, 1), (3, 2), (5, 3), (8, 4)):
        config = dataclasses.replace(CONFIG, num_layers=layers)
        assert [block for stage in range(stages) for block in blocks_of(config, stages, stage)] == list(range(layers))
