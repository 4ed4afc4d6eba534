"""A tokeniser and two corpora of the same documents."""

import json
from pathlib import Path

import pytest

from data.tokens import tasks, tokenisers
from tests.data.tokens.preparing import LINES


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokeniser")
    tokenisers.save(tokenisers.train_bpe(LINES, 300), folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of four files, each a task of its own."""
    monkeypatch.setattr(tasks, "piece_bytes", lambda total: 1)
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4):
        part = LINES[number * 100 : number * 100 + 100]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in part))
    return folder
