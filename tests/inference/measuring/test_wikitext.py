"""Perplexity a word as Megatron-LM measures it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import evaluate as command
from data.tokens import tokenisers
from inference import evaluate
from inference.measuring import losses
from inference.measuring.wikitext import detokenised
from model.gpt import GPT
from run.directory import read_recipe
from tests.inference.measuring.test_objectives import made

WIKI = (
    ' \n = The Cat = \n \n The cat \'s well @-@ known mat , of 1 @,@ 000 @.@ 5 grams ( a rat ) , sat : the " cat " ; '
    "it sat ! \n = = The rat = = \n \n The rats ' mat is at 5 ° N ? It is . \n " * 4
)


@pytest.mark.parametrize(
    ("split", "whole"),
    [
        ("a well @-@ known cat", "a well-known cat"),
        ("1 @,@ 000 @.@ 5", "1,000.5"),
        ("a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
        ("a ( b c ) d", "a (b c) d"),
        ("a [ b ] { c } d", "a [b] {c} d"),
        ('he said " go " and', 'he said "go" and'),
        ("he said ' go ' and", "he said 'go' and"),
        ("the cat 's and the rats ' mats", "the cat's and the rats' mats"),
        ("\n = A = \n", "\n= A =\n"),
        ("\n = = A = = \n", "\n== A ==\n"),
        ("\n = = = A = = = \n", "\n=== A ===\n"),
        ("\n = = = = A = = = = \n", "\n==== A ====\n"),
        ("5 ° C", "5°C"),
        ("N dogs and N cats", "N dogs and 1 cats"),
        ("a \n b", "a\nb"),
        ("the <unk> stays", "the <unk> stays"),
    ],
)
def test_each_rule_puts_together_what_was_split(split: str, whole: str) -> None:
    assert detokenised(split) == whole


def test_the_rules_in_their_order() -> None:
    assert detokenised(WIKI[: len(WIKI) // 4]) == (
        '\n= The Cat =\n\nThe cat\'s well-known mat, of 1,000.5 grams (a rat), sat: the "cat"; it sat!\n'
        "== The rat ==\n\nThe rats' mat is at 5°N? It is.\n"
    )


def by_hand(model: GPT, tokens: list[int], entries: int, stride: int) -> float:
    """The mean loss as Megatron's data set has it: one window after the other, filled up behind; each but the first
    counts its last labels alone."""
    length, targets, total, counted = model.config.seq_length, len(tokens) - 1, 0.0, 0
    for number in range(max(1, math.ceil((targets - stride) / stride) + 1)):
        window = tokens[number * stride : number * stride + length + 1]
        real = np.zeros(length, bool)
        real[: len(window) - 1] = True
        window = [*window, *[0] * (length + 1 - len(window))]
        if number and stride != length:
            real[:-stride] = False
        with torch.no_grad():
            odds_SE = model(torch.tensor([window[:-1]]))[0, :, :entries].log_softmax(-1)
        each = -odds_SE.gather(1, torch.tensor(window[1:])[:, None])[:, 0]
        total += float(each[torch.from_numpy(real)].sum())
        counted += int(real.sum())
    assert counted == targets
    return total / targets


@pytest.fixture
def wiki(run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, GPT, list[int], int]:
    """A file, the run's model, the file's tokens and how many the tokeniser has."""
    model = made(read_recipe(run).model)
    monkeypatch.setattr("inference.measuring.models.load_model", lambda run, checkpoint: model)
    (run.parent / "wiki.test.tokens").write_text(WIKI)
    tokeniser = tokenisers.load(str(run / "tokeniser"))
    tokens = tokeniser(detokenised(WIKI))["input_ids"]
    assert len(tokens) > 3 * 32
    return run.parent / "wiki.test.tokens", model, tokens, tokenisers.entries(tokeniser)


@pytest.mark.parametrize("stride", [1, 5, 31, 32])
def test_a_plain_reimplementation_says_the_same(
    stride: int, run: Path, wiki: tuple[Path, GPT, list[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model, tokens, entries = wiki
    monkeypatch.setattr(losses, "BATCH_TOKENS", 3 * 32)
    wanted = by_hand(model, tokens, entries, stride)
    values = evaluate.word_perplexity(run, str(file), stride=stride)
    assert values["loss"] == pytest.approx(wanted, rel=1e-6) and values["tokens"] == len(tokens) - 1
    words = WIKI.strip().count(" ") + 1
    assert values["words"] == words
    assert values["word_perplexity"] == pytest.approx(math.exp(wanted * (len(tokens) - 1) / (words - 1)), rel=1e-5)
    size = len(detokenised(WIKI).encode())
    assert values["bytes"] == size
    assert values["bits_per_byte"] == pytest.approx(wanted * (len(tokens) - 1) / size / math.log(2), rel=1e-6)


def test_a_text_shorter_than_a_window(run: Path, wiki: tuple[Path, GPT, list[int], int]) -> None:
    file, model, _, entries = wiki
    file.write_text("the cat @-@ rat")
    tokens = tokenisers.load(str(run / "tokeniser"))("the cat-rat")["input_ids"]
    values = evaluate.word_perplexity(run, str(file))
    assert values["loss"] == pytest.approx(by_hand(model, tokens, entries, 32), rel=1e-6)
    assert (values["words"], values["stride"]) == (4, 32)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--data {}/one --protocol wikitext103", "one holds fewer than two words; give another"),
        ("--data {}/empty --protocol wikitext103", "empty holds fewer than two words; give another"),
        ("--data {}/binary --protocol wikitext103", "binary is not UTF-8 at byte 3; convert it"),
        ("--data {} --protocol wikitext103", "cannot be read: is a directory; give a file such as"),
        ("--data {}/none --protocol wikitext103", "cannot be read: no such file or directory; give a file such as"),
        ("--data {}/wiki.test.tokens --protocol wikitext103 --stride 33", "--stride 33 does not fit: a window has 32"),
        ("--data {}/wiki.test.tokens --protocol wikitext103 --stride 0", "--stride 0 does not fit"),
        ("--data {}/wiki.test.tokens --stride 3", "--stride goes with --protocol"),
        ("--protocol wikitext103", "--protocol needs --data FILE"),
    ],
)
def test_wrong_input_is_one_line(
    flags: str,
    reason: str,
    run: Path,
    wiki: tuple[Path, GPT, list[int], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run.parent
    for name, content in (("one", b"the"), ("empty", b""), ("binary", b"the\xff")):
        (folder / name).write_bytes(content)
    monkeypatch.setattr("sys.argv", ["evaluate", "--run", str(run), *flags.format(folder).split()])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    found = capsys.readouterr()
    assert reason in found.err and found.err.count("\n") == 1 and not found.out


def test_a_model_of_another_objective_has_no_word_perplexity(run: Path, wiki: tuple[Path, GPT, list[int], int]) -> None:
    values = json.loads((run / "recipe.json").read_text())
    values["model"]["objective"] = "prefix"
    (run / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"needs a causal model, and .*run is of the prefix objective"):
        evaluate.word_perplexity(run, str(wiki[0]))
