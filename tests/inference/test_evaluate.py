import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.samples.mixture import Mixture, PreparedPart
from data.tokens import prepare, tokenisers
from inference import evaluate
from inference.measuring import losses, models
from inference.measuring import texts as measured_texts
from inference.measuring.losses import Measured, Objective, mean_loss
from inference.measuring.texts import Text, words_of
from model.config import GPTConfig
from model.gpt import GPT
from model.init import init_weights
from model.loss import token_losses
from run.report import bits_per_byte
from tests.inference.conftest import WORDS

END, ENTRIES = 3, 40


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 43])
def test_a_loss_is_read_a_batch_at_a_time(count: int, separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(num_layers=1, hidden_size=16, num_attention_heads=2, seq_length=4, vocab_size=50)
    model = GPT(config).eval()
    init_weights({p: name for name, p in model.named_parameters()}, config, 1)
    tokens = np.random.default_rng(1).integers(ENTRIES, size=count)
    tokens[[0, count // 2]] = END
    each = []
    for first in range(0, count, 4):  # by hand: consecutive windows behind an end, the last one as short as it is
        window = torch.tensor([[END, *tokens][first : first + 5]])
        apart = (window[:, :-1] == END).cumsum(1).roll(1) if separate else None
        if apart is not None:
            apart[:, 0] = 0
        each.append(token_losses(model(window[:, :-1], None, apart), window[:, 1:], ENTRIES).flatten())
    assert sum(map(len, each)) == count
    monkeypatch.setattr(losses, "BATCH_TOKENS", 9)  # two windows of four
    spans = []

    def read(start: int, stop: int) -> NDArray[np.generic]:
        spans.append(stop - start)
        return tokens[start:stop]

    objective = Objective(separate=separate)
    subject = Measured(model, 128, 4, ENTRIES, END, END, torch.device("cpu"), objective)
    loss = mean_loss(subject, Text("a", read, count, 1))
    assert loss.mean == pytest.approx(torch.cat(each).mean().item(), rel=1e-6) and loss.tokens == count
    assert spans == [8] * -(-count // 8)
    with pytest.raises(
        ValueError, match="a holds token 40 but the model's tokeniser has 40: another tokeniser made it"
    ):
        mean_loss(subject, Text("a", lambda start, stop: np.full(count, 40)[start:stop], count, 1))


@pytest.mark.parametrize("texts", [["x"], ["the cat sat on the mat", "x", "Käse, the rat"], ["the cat " * 40] * 3])
def test_bits_per_byte_of_a_model_that_knows_nothing(
    texts: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ids are alike to it: log2 V bits a token, of all tokens, over the bytes of the text."""
    model = models.load_model(run)
    torch.nn.init.zeros_(model.embed.weight)
    monkeypatch.setattr(losses, "BATCH_TOKENS", 64)  # two windows
    path = run.parent / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokeniser = tokenisers.load(str(run / "tokeniser"))
    tokens = sum(len(tokeniser.encode(text)) + 1 for text in texts)  # each document is closed by one that has no bytes
    size = sum(len(text.encode()) for text in texts)
    values = evaluate.evaluate(run, str(path))
    assert values["tokens"] == tokens and values["bytes"] == size
    assert values["loss"] == pytest.approx(math.log(len(tokeniser)), rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(tokens * math.log2(len(tokeniser)) / size, rel=1e-6)


def test_validation_while_training_sees_what_evaluate_sees(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same labels behind the same tokens, of a split by its path, of its shard, and of the run's own validation."""
    _, folder = prepared([f"{WORDS}{i}" for i in range(5)], run)
    mixture = Mixture([PreparedPart("texts", folder, 1)])
    (run / "data.json").write_text(json.dumps(mixture.described))
    model, length = models.load_model(run), 32
    samples, mask = map(torch.from_numpy, mixture.held_out(length, 1000))
    with torch.no_grad():
        each = token_losses(model(samples[:, :-1]), samples[:, 1:], mixture.entries)[mask]
    (shard,) = folder.glob("validation-*.idx")
    held_out = prepare.manifest(folder)["validation"]
    for data in ("validation", str(folder / "validation"), str(shard)):
        values = evaluate.evaluate(run, data)
        assert values["tokens"] == len(each) == held_out["tokens"] and values["bytes"] == held_out["bytes"]
        assert values["loss"] == pytest.approx(each.mean().item(), rel=1e-6)
        assert values["bits_per_byte"] == pytest.approx(bits_per_byte(values["loss"], mixture.bytes_per_token))


def text_of(run: Path, data: str) -> Text:
    return measured_texts.text_of(words_of(run), data)


def test_a_text_of_nothing_is_refused(run: Path) -> None:
    (run.parent / "empty.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(ValueError, match="holds no text"):
        evaluate.evaluate(run, str(run.parent / "empty.jsonl"))


def test_what_another_tokeniser_made_is_refused(run: Path) -> None:
    """Its ids may all be known to the run, but they are other words."""
    _, folder = prepared([f"{WORDS}{i}" for i in range(5)], run)
    tokenisers.save(tokenisers.train_bpe(["other texts have other words\n"] * 9, 300), folder / "tokeniser")
    (shard,) = folder.glob("validation-*.idx")
    for data in (folder / "validation", shard):
        with pytest.raises(ValueError, match=r"was made with another tokeniser than .*run; give the text"):
            text_of(run, str(data))


def test_what_names_no_text_is_refused(run: Path) -> None:
    _, folder = prepared([f"{WORDS}{i}" for i in range(5)], run)
    with pytest.raises(ValueError, match=r"is a prepared folder; give one of its splits, such as .*/test"):
        text_of(run, str(folder))
    with pytest.raises(ValueError, match="corpus '' does not exist"):
        text_of(run, "")


def test_a_run_without_its_tokeniser_is_one_line(run: Path) -> None:
    (run / "tokeniser" / "tokenizer.json").rename(run.parent / "a.txt")
    with pytest.raises(ValueError, match=r"tokeniser .* (cannot be loaded|has no words)"):
        text_of(run, str(run.parent / "a.txt"))


def prepared(texts: list[str], run: Path) -> tuple[Path, Path]:
    """A corpus of `texts`, the last one for validation, and its prepared folder."""
    path, last = run.parent / "texts.jsonl", len(texts) - 1
    records = [{"text": text, "split": "validation" if i == last else "train"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, prepare.prepare(str(path), str(run / "tokeniser"), 300, run.parent / "out")


def test_a_text_has_the_tokens_that_preparing_gives_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the name of a special token is plain text, and no end of a document."""
    monkeypatch.setattr(measured_texts, "BATCH_DOCUMENTS", 2)
    path, folder = prepared([f"{WORDS}{i}" for i in range(5)], run)
    direct, parts = text_of(run, str(path)), [text_of(run, str(folder / split)) for split in ("train", "validation")]
    tokens = direct.read(0, direct.num_tokens)
    np.testing.assert_array_equal(tokens, np.concatenate([part.read(0, part.num_tokens) for part in parts]))
    assert (tokens == tokenisers.load(str(run / "tokeniser")).eos_token_id).sum() == 5
    assert direct.size == sum(part.size for part in parts) == 5 * len(WORDS + "0")


@pytest.mark.parametrize("batch", [1, 40, 10**6])
def test_the_text_of_a_shard_is_measured_in_parts(batch: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = prepared([f"Käse {i}" * 9 for i in range(10)], run)
    monkeypatch.setattr(measured_texts, "DECODED_TOKENS", batch)
    (shard,) = folder.glob("train-*.idx")
    assert text_of(run, str(shard)).size == prepare.manifest(folder)["train"]["bytes"] == 9 * 9 * len("Käse 1".encode())
