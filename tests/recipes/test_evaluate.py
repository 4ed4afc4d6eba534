import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data import prepare, tokenisers
from model.config import GPTConfig
from model.gpt import GPT
from model.init import init_weights
from model.loss import token_losses
from recipes import evaluate
from recipes.evaluate import Text, mean_loss, text_of

WORDS = "the cat sat on the mat, the rat sat on the cat <|endoftext|> and more\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As much of a run's directory as reading texts takes."""
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path / "run" / "tokeniser")
    return tmp_path / "run"


@pytest.mark.parametrize("count", [2, 8, 9, 16, 17, 18, 43])
def test_a_loss_is_read_a_batch_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(num_layers=1, hidden_size=16, num_attention_heads=2, seq_length=4, vocab_size=50)
    model = GPT(config).eval()
    init_weights({p: name for name, p in model.named_parameters()}, config, 1)
    tokens = np.random.default_rng(1).integers(50, size=count)
    losses = []
    for first in range(0, count - 1, 4):  # by hand: consecutive windows, the last one as short as it is
        window = torch.from_numpy(tokens[first : first + 5])[None]
        losses.append(token_losses(model(window[:, :-1]), window[:, 1:], 50).flatten())
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", 9)  # two windows of four
    spans = []

    def read(start: int, stop: int) -> NDArray[np.generic]:
        spans.append(stop - start)
        return tokens[start:stop]

    assert mean_loss(model, Text("a", read, count, 1), None) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)
    assert spans == [9] * -(-(count - 1) // 8)
    with pytest.raises(ValueError, match="a holds token 50 but the model has 50: another tokeniser made it"):
        mean_loss(model, Text("a", lambda start, stop: np.full(count, 50)[start:stop], count, 1), None)


def prepared(texts: list[str], run: Path) -> tuple[Path, Path]:
    """A corpus of `texts`, the last one for validation, and its prepared folder."""
    path, last = run.parent / "texts.jsonl", len(texts) - 1
    records = [{"text": text, "split": "validation" if i == last else "train"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, prepare.prepare(str(path), str(run / "tokeniser"), 300, run.parent / "out")


def test_a_text_has_the_tokens_that_preparing_gives_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the name of a special token is plain text, and no end of a document."""
    monkeypatch.setattr(evaluate, "BATCH_DOCUMENTS", 2)
    path, folder = prepared([f"{WORDS}{i}" for i in range(5)], run)
    direct, parts = text_of(run, str(path)), [text_of(run, str(folder / split)) for split in ("train", "validation")]
    tokens = direct.read(0, direct.num_tokens)
    np.testing.assert_array_equal(tokens, np.concatenate([part.read(0, part.num_tokens) for part in parts]))
    assert (tokens == tokenisers.load(str(run / "tokeniser")).eos_token_id).sum() == 5
    assert direct.size == sum(part.size for part in parts) == 5 * len(WORDS + "0")


@pytest.mark.parametrize("batch", [1, 40, 10**6])
def test_the_text_of_a_shard_is_measured_in_parts(batch: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = prepared([f"Käse {i}" * 9 for i in range(10)], run)
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", batch)
    (shard,) = folder.glob("train-*.idx")
    assert text_of(run, str(shard)).size == prepare.manifest(folder)["train"]["bytes"] == 9 * 9 * len("Käse 1".encode())
