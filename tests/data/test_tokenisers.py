from pathlib import Path

import pytest

from data import tokenisers

TEXT = ["the cat sat on the mat, the rat sat on the cat. " * 20, "Ünïcödé and 漢字 and \x00 and 🙂"]


def test_a_trained_bpe_gives_back_every_byte(tmp_path: Path) -> None:
    tokeniser = tokenisers.obtain("bpe:300", TEXT)
    assert 257 <= len(tokeniser) <= 300
    tokenisers.save(tokeniser, tmp_path)
    loaded = tokenisers.load(str(tmp_path))
    strange = "never seen: ß→∞ \t\r\n  two  spaces"
    for each in (tokeniser, loaded):
        assert each.decode(each.encode(strange)) == strange
        assert each.eos_token == tokenisers.END_OF_DOCUMENT and each.eos_token_id == 0
    assert loaded.encode(TEXT[0]) == tokeniser.encode(TEXT[0])
    assert len(tokeniser.encode(TEXT[0])) < len(TEXT[0]) / 2


def test_gpt2_is_gpt2() -> None:
    tokeniser = tokenisers.obtain("gpt2", [])
    assert len(tokeniser) == 50257
    assert tokeniser.encode("Hello world") == [15496, 995]
    assert tokeniser.eos_token_id == 50256
    assert tokeniser.decode(tokeniser.encode(" naïve — 漢字")) == " naïve — 漢字"


@pytest.mark.parametrize(
    ("spec", "words"),
    [("bpe:10", "at least 257"), ("bpe:many", "write bpe:N"), ("no/such-tokeniser", "cannot be loaded")],
)
def test_a_tokeniser_that_cannot_be_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        tokenisers.obtain(spec, [])
    assert "\n" not in str(caught.value)
