import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.inspect import find
from data import inspect
from data.samples import mixture
from data.tokens import prepare
from support.errors import UserError
from tests.commands.running import fail, succeed
from tests.data.cleaning.test_clean import write
from tests.data.tokens.test_tokenisers import with_gap
from tests.run import directories


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora of a hundred documents each, one of twice as long ones, with one tokeniser that has a gap."""
    root = tmp_path_factory.mktemp("inspect")
    corpora = [
        write(root / f"{name}.jsonl", [f"{name} number {i} says its word\n" * times for i in range(100)])
        for name, times in (("short", 1), ("long", 2))
    ]
    texts = [json.loads(line)["text"] for corpus in corpora for line in Path(corpus).read_text().splitlines()]
    tokeniser = str(with_gap(root / "tokeniser", texts))
    return [prepare.prepare(corpus, tokeniser, 304, root) for corpus in corpora]


def described(folders: list[Path], shares: list[int], seq_length: int = 32) -> dict[str, Any]:
    parts = [mixture.PreparedPart(f.name, f, share) for f, share in zip(folders, shares, strict=True)]
    return inspect.describe(inspect.Inspected(mixture.Mixture(parts), seq_length, 1), 4)


def test_parts_stand_beside_their_weights(folders: list[Path]) -> None:
    values = described(folders, [3, 1])
    manifests = [prepare.manifest(folder)["train"] for folder in folders]
    tokens = [manifest["tokens"] for manifest in manifests]
    for part, manifest, weight in zip(values["parts"], manifests, (0.75, 0.25), strict=True):
        assert part["weight"] == weight
        assert part["share_of_tokens"] == manifest["tokens"] / sum(tokens)
        assert part["bytes_per_token"] == manifest["bytes"] / manifest["tokens"]


def test_tokens_and_lengths_are_counted(folders: list[Path]) -> None:
    values = described(folders, [1, 1])
    from data.tokens.tokenisers import load

    shards = [prepare.shards(folder, "train") for folder in folders]
    tokens = np.concatenate([each.read() for each in shards])
    assert values["tokens_counted"] == len(tokens)
    top = values["frequent"][0]
    assert top["count"] == np.bincount(tokens).max() and top["token"] == np.bincount(tokens).argmax()
    assert top["text"] == load(str(folders[0] / "tokeniser")).decode([top["token"]])
    assert values["entries_not_seen"] == values["tokeniser"]["entries"] - len(np.unique(tokens))
    lengths = np.concatenate([each.lengths for each in shards])
    for bin in values["lengths"]:
        assert bin["documents"] == ((lengths >= bin["from"]) & (lengths < bin["below"])).sum()


def test_large_shards_are_counted_in_blocks(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "COUNTED_TOKENS", 128)
    assert described(folders, [1, 1])["tokens_counted"] == 2 * 128


def test_the_batch_is_the_run_s_with_documents_told_apart(folders: list[Path]) -> None:
    values = described(folders, [1, 1])
    end = values["tokeniser"]["end_of_document"]
    parts = [mixture.PreparedPart("x", folder, 1) for folder in folders]
    samples = mixture.Mixture(parts).training(32, 1).batch(0, 4)
    assert len(values["batch"]) == 4
    for pieces, sample in zip(values["batch"], samples, strict=True):
        ends = int((sample == mixture.Mixture(parts).end_of_document).sum())
        assert sum(piece.endswith(end) for piece in pieces) == ends
        assert all(piece.count(end) == piece.endswith(end) for piece in pieces)
    assert sum(len(pieces) > 1 for pieces in values["batch"]) > 1
    assert [document["corpus"] for document in values["documents"]] == [folders[0].name] * 2 + [folders[1].name] * 2
    assert values["documents"][0]["text"].startswith("short number")


def test_the_command(folders: list[Path], tmp_path: Path) -> None:
    shown = succeed(tmp_path, "commands", "inspect", *map(str, folders), "--show", "2")
    assert "bytes a token" in shown and "document 0 of" in shown and "<|endoftext|>" in shown and "█" in shown
    values = json.loads(succeed(tmp_path, "commands", "inspect", *map(str, folders), "--json"))
    weights = [part["weight"] for part in values["parts"]]
    assert weights == pytest.approx([part["share_of_tokens"] for part in values["parts"]], abs=1e-6)


def test_bad_input_is_one_line(folders: list[Path], tmp_path: Path) -> None:
    other = prepare.prepare(write(tmp_path / "a.jsonl", ["some text"] * 60), "bpe:260", 300, tmp_path)
    assert "different tokenisers" in fail(tmp_path, "commands", "inspect", str(folders[0]), str(other))
    assert "not a prepared data folder" in fail(tmp_path, "commands", "inspect", str(tmp_path))
    assert "did you mean gpt_tiny" in fail(tmp_path, "commands", "inspect", "tinny")
    assert "at least 1" in fail(tmp_path, "commands", "inspect", str(other), "--show", "0")
    assert "goes with a recipe" in fail(tmp_path, "commands", "inspect", str(other), "--set", "data.corpus=x")


def test_a_run_by_its_name(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    path = directories.run(tmp_path / "runs", "x", name="mine")
    data = mixture.Mixture([mixture.PreparedPart("x", folders[0], 1)])
    (path / "data.json").write_text(json.dumps(data.described))
    assert find(["mine"], []).mixture.fingerprint == data.fingerprint
    with pytest.raises(UserError, match="mein is no prepared folder, no run and no recipe"):
        find(["mein"], [])
