"""The benchmark of preparing data: what did not work is not timed."""

from pathlib import Path

import pytest

from bench.data import Tokenising
from data.tokens import tokenisers


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    tokenisers.save(tokenisers.train_bpe(["some text"], 300), tmp_path / "tokeniser")
    ways = Tokenising(tmp_path / "missing.jsonl", tmp_path / "tokeniser", tmp_path, 1)
    with pytest.raises(ValueError, match="exit status 1, so there is nothing to time"):
        ways.whole_command()
