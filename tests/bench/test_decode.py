"""The benchmark of writing: both write the same greedy texts, else nothing is timed."""

import pytest

from bench import decode
from inference.sampling import Sampling
from model.config import GPTConfig
from tests.inference.decode.test_decode import model

CONFIG = GPTConfig(num_layers=2, hidden_size=16, num_attention_heads=2, seq_length=32, vocab_size=128)


def test_greedy_texts_are_compared_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = decode.Case(3, 6, Sampling(greedy=True))
    values = decode.compare(model(CONFIG), case, 1)
    assert values["prompts"] == 3 and values["ratio"] == values["ours"] / values["transformers"]
    monkeypatch.setattr(decode, "theirs", lambda *_: [[1] * 6] * 3)
    with pytest.raises(ValueError, match="the greedy texts differ"):
        decode.compare(model(CONFIG), case, 1)
