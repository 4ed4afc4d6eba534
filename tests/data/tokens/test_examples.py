"""Examples as weighted shards: the weight of every token, and what keeps them right."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data.corpus.examples import AUTO, Form
from data.samples.mixture import Mixture, PreparedPart
from data.samples.packing import sizes
from data.tokens import prepare, tokenisers
from data.tokens.beside import Beside
from data.tokens.encode import Judge
from data.tokens.shards import WEIGHTS
from support.errors import UserError
from tests.data.corpus.test_examples import CHAT, REVIEW, TALK, write

WORDS = ["Review: A good film.\nSentiment: good\n", "User: Who?\nAssistant: Me.\n", "Be brief. Why? So."] * 9


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("words")
    made = tokenisers.train_bpe(WORDS, 300)
    made.chat_template = CHAT
    tokenisers.save(made, folder)
    return str(folder)


def prepared(rows: list[dict[str, object]], tokeniser: str, root: Path, form: Form, **how: object) -> Path:
    path = write(root / "rows.jsonl", *rows)
    return prepare.prepare(str(path), tokeniser, 300, root / "out", form=form, options=prepare.Options(1, **how))  # type: ignore[arg-type]


def labelled(folder: Path, split: str = "train") -> list[list[tuple[str, int]]]:
    """The tokens of each example, with their weights."""
    words, shards = tokenisers.load(str(folder / "tokeniser")), prepare.shards(folder, split)
    weights = Beside(shards, WEIGHTS, np.uint8).read().tolist()
    pairs = [(words.decode([token]), weight) for token, weight in zip(shards.read().tolist(), weights, strict=True)]
    cuts = np.cumsum(shards.lengths).tolist()
    return [pairs[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]


def sides(example: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Neighbours of one weight as one text."""
    found: list[tuple[str, int]] = []
    for text, weight in example:
        if found and found[-1][1] == weight:
            found[-1] = found[-1][0] + text, weight
        else:
            found.append((text, weight))
    return found


SPLITS = [{"split": "train"}, {"split": "validation"}]


def test_the_answer_weighs_one_with_its_end_and_the_prompt_nothing(tokeniser: str, tmp_path: Path) -> None:
    row = {"text": "A good film.", "label": "good"}
    folder = prepared([row | split for split in SPLITS], tokeniser, tmp_path, Form(REVIEW, 64))
    (example,) = labelled(folder)
    assert sides(example) == [("Review: A good film.\nSentiment:", 0), (" good\n<|endoftext|>", 1)]
    alone = Judge(Path(tokeniser))(["Review: A good film.\nSentiment:"])[0]
    tokens = prepare.shards(folder, "train").read()
    assert tokens[: len(alone)].tolist() == alone.tolist()  # what a model reads when it is asked
    facts = prepare.manifest(folder)["train"]
    assert facts["answer_tokens"] == len(tokens) - len(alone) and facts["answer_bytes"] == len(" good\n")


def test_without_a_prompt_the_first_token_has_nothing_to_be_guessed_from(tokeniser: str, tmp_path: Path) -> None:
    folder = prepared([{"a": "xyz"} | split for split in SPLITS], tokeniser, tmp_path, Form("{a}", 64))
    assert labelled(folder) == [[("x", 0), ("y", 1), ("z", 1), ("<|endoftext|>", 1)]]


def test_every_turn_of_an_assistant_is_learned(tokeniser: str, tmp_path: Path) -> None:
    rows = [{"messages": TALK} | split for split in SPLITS]
    (example,) = labelled(prepared(rows, tokeniser, tmp_path / "a", Form(AUTO, 64)))
    assert sides(example) == [
        ("Be brief.\n\nUser: Who?\nAssistant:", 0),
        (" Me.\n", 1),
        ("User: Why?\nAssistant:", 0),
        (" So.\n<|endoftext|>", 1),
    ]
    form = Form(AUTO, 128, CHAT, (("eos_token", "<|endoftext|>"),))
    (example,) = labelled(prepared(rows, tokeniser, tmp_path / "b", form))
    assert sides(example) == [
        ("<system>Be brief.<|endoftext|>\n<user>Who?<|endoftext|>\n<assistant>", 0),
        ("Me.<|endoftext|>\n", 1),
        ("<user>Why?<|endoftext|>\n<assistant>", 0),
        ("So.<|endoftext|>", 1),  # the template wrote the end: it is there once
    ]
    assert [text for text, _ in example].count("<|endoftext|>") == 5  # tokens, not their letters


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()


def test_an_example_that_is_too_long_is_named_and_can_be_skipped(tokeniser: str, tmp_path: Path) -> None:
    rows = [{"a": "x" * many} | split for many in (7, 8, 9) for split in SPLITS]
    with pytest.raises(UserError) as error:
        prepared(rows, tokeniser, tmp_path, Form("{a}", 9))
    assert str(error.value) == (
        f"corpus file {tmp_path / 'rows.jsonl'} line 5 makes 10 tokens, and a context of 8 takes 9 with the end; "
        "shorten it, or set data.skip_longer=true"
    )
    assert not list((tmp_path / "out").glob("*/"))
    folder = prepared(rows, tokeniser, tmp_path, Form("{a}", 9), skip=True)
    assert [len(example) for example in labelled(folder)] == [8, 9]
    assert prepare.manifest(folder)["skipped"] == {"longer than the context": 2}
    folder = prepared(rows, tokeniser, tmp_path, Form("{a}", 9, skip_longer=True))
    assert [len(example) for example in labelled(folder)] == [8, 9] and not prepare.manifest(folder)["skipped"]
    assert prepare.manifest(folder)["left_out"] == 2


def test_weights_belong_to_their_shards(tokeniser: str, tmp_path: Path) -> None:
    form = Form("{a}{b}", 64)
    rows = [{"a": "x" * (n % 9), "b": f"the answer {n}"} for n in range(400)]
    folder = prepared(rows, tokeniser, tmp_path, form)
    (shard,) = prepare.manifest(folder)["train"]["shards"]
    weights = folder / f"{shard['name']}{WEIGHTS}"
    kept = weights.read_bytes()
    assert len(kept) == shard["tokens"] and sum(kept) == shard["answer_tokens"]
    prepare.check(folder)
    weights.write_bytes(bytes([1]) + kept[1:])
    os.utime(weights, ns=(2**62, 2**62))
    with pytest.raises(UserError, match="was changed after it was written; remove"):
        prepare.check(folder)
    weights.write_bytes(kept[1:])
    with pytest.raises(UserError, match=rf"{shard['name']}.weights has .* bytes where its shard needs"):
        prepare.check(folder)
    weights.unlink()
    with pytest.raises(UserError, match=rf"{shard['name']}.weights does not exist"):
        prepare.check(folder)


def test_another_template_or_context_prepares_anew_and_texts_as_before(tokeniser: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "some words", "label": "good"} | split for split in SPLITS]
    forms = (Form(REVIEW, 64), Form(REVIEW, 65), Form("{text} {label}", 64))
    folders = {prepared(rows, tokeniser, tmp_path, form) for form in forms}
    times = (tmp_path / "rows.jsonl").stat()
    again = prepare.prepare(str(tmp_path / "rows.jsonl"), tokeniser, 300, tmp_path / "out", form=Form(REVIEW, 64))
    assert times and len(folders) == 3
    plain = prepare.prepare(str(tmp_path / "rows.jsonl"), tokeniser, 300, tmp_path / "out")
    assert plain not in folders and again not in (plain,)
    assert "form" not in json.loads((plain / "manifest.json").read_text())["source"]
    assert not list(plain.glob("*.weights"))


def test_what_is_held_out_of_examples_is_whole_examples(tokeniser: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"a": "x" * 50, "b": f" {n}", "split": "train"} for n in range(20)]
    folder = prepared(rows, tokeniser, tmp_path, Form("{a}{b}", 64))
    assert len(labelled(folder)) + len(labelled(folder, "validation")) == 20
    assert all(example[-1] == ("<|endoftext|>", 1) for example in labelled(folder, "validation"))


def test_what_is_held_out_is_a_share_of_what_fits(tokeniser: str, tmp_path: Path) -> None:
    """Half is left out, in turns: 5 of 100 bytes of the rest are for validation, and the last example is whole."""
    rows: list[dict[str, object]] = [{"a": "x" * (7, 60)[n % 2], "split": "train"} for n in range(200)]
    form = Form("{a}", 16, skip_longer=True)
    folder = prepared(rows, tokeniser, tmp_path, form)
    facts = prepare.manifest(folder)
    assert [facts[split]["documents"] for split in ("train", "validation")] == [94, 6] and facts["left_out"] == 100


def test_where_no_example_fits_that_is_said(tokeniser: str, tmp_path: Path) -> None:
    form = Form("{a}", 16, skip_longer=True)
    with pytest.raises(UserError, match="no example that fits: all 2 are longer than the context of 15 tokens; give"):
        prepared([{"a": "x" * 60} | split for split in SPLITS], tokeniser, tmp_path, form)
    assert not list((tmp_path / "out").glob("*/manifest.json"))


def test_validation_reads_examples_of_every_length(tokeniser: str, tmp_path: Path) -> None:
    """Samples are packed with the longest first; a part of them must not be the long ones alone."""
    rows: list[dict[str, object]] = [
        {"a": "x" * length, "split": split}
        for length in (14, 9)
        for split in ("train", "validation")
        for _ in range(20)
    ]
    folder = prepared(rows, tokeniser, tmp_path, Form("{a}", 16))
    mixture = Mixture([PreparedPart("rows", folder, 1)])
    some, all_of_them = ((mixture.held_out_examples(15, most).weights.sum(axis=1)) for most in (20, 100))
    assert sorted(all_of_them.tolist()) == [9] * 20 + [14] * 20 and 5 < (some == 14).sum() < 15


def test_a_pair_is_one_document_and_its_weights_tell_its_sides(tokeniser: str, tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": " So.", "rejected": " Me."}
    rows = [row | split for split in SPLITS]
    folder = prepared(rows, tokeniser, tmp_path, Form(AUTO, 64, pairs=True))
    (pair,) = labelled(folder)
    end = "<|endoftext|>"
    assert sides(pair) == [("Why?", 0), (f" So.{end}", 1), ("Why?", 0), (f" Me.{end}", 2)]
    facts = prepare.manifest(folder)["train"]
    assert facts["answer_tokens"] == sum(weight > 0 for _, weight in pair) and facts["answer_bytes"] == 8
    chosen = sum(weight == 1 for _, weight in pair) + [weight for _, weight in pair].index(1)
    assert sizes(np.array([weight for _, weight in pair], np.uint8)) == [chosen, len(pair) - chosen]
    with pytest.raises(
        UserError, match=rf"line 1 makes {len(pair)} tokens with both sides, and a context of 8 takes 9"
    ):
        prepared(rows, tokeniser, tmp_path, Form(AUTO, 9, pairs=True))
    with pytest.raises(UserError, match=r"has no example that fits: all 2 are longer"):
        prepared(rows, tokeniser, tmp_path, Form(AUTO, 9, skip_longer=True, pairs=True))
