import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.tokens import encode, tokenisers
from data.tokens.encode import Gigatoken, Judge, Tokens, choose

TEXTS = [
    "the cat sat on the mat, the rat sat on the cat. " * 20,
    "Ünïcödé and 漢字 and \x00",
    "",
    "<|endoftext|> as text",
]


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokeniser")
    tokenisers.save(tokenisers.obtain("bpe:300", TEXTS[:2]), folder)
    return folder


@pytest.mark.parametrize("engine", [Judge, Gigatoken])
def test_engines_give_back_every_text(engine: type[Judge], tokeniser: Path) -> None:
    tokens, lengths = engine(tokeniser)(TEXTS)
    loaded = tokenisers.load(str(tokeniser))
    ends = np.cumsum(lengths)
    parts = [tokens[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]
    assert [loaded.decode(part) for part in parts] == TEXTS
    assert loaded.eos_token_id not in tokens  # its name in a text is text
    assert len(parts[0]) < len(TEXTS[0]) / 2


def test_gigatoken_does_the_work_where_its_ids_are_the_judge_s(tokeniser: Path) -> None:
    engine, why = choose(tokeniser, TEXTS)
    assert engine == "gigatoken" and "the ids of tokenizers" in why
    engine, why = choose(tokeniser, TEXTS, "tokenizers")
    assert engine == "tokenizers" and "as asked for" in why


def test_other_ids_fall_back_to_the_judge(tokeniser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Gigatoken):
        def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Tokens]:
            tokens, lengths = super().__call__(texts)
            tokens = tokens.copy()
            tokens[-1] += 1
            return tokens, lengths

    monkeypatch.setattr(encode, "Gigatoken", Off)
    engine, why = choose(tokeniser, TEXTS)
    assert engine == "tokenizers" and "the slower engine" in why and "gives other ids" in why
    with pytest.raises(ValueError, match=r"engine gigatoken cannot encode this corpus: .* gives other ids"):
        choose(tokeniser, TEXTS, "gigatoken")


def test_without_gigatoken_the_judge_does_the_work(tokeniser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert choose(tokeniser, TEXTS) == ("tokenizers", f"{Judge(tokeniser).name}".join(
        ("encoding with ", ", the slower engine: gigatoken is not installed (pip install gigatoken)")
    ))  # fmt: skip


def test_a_tokeniser_that_gigatoken_does_not_read_falls_back(tokeniser: Path, tmp_path: Path) -> None:
    described = json.loads((tokeniser / "tokenizer.json").read_text())
    described["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    engine, why = choose(tmp_path, TEXTS)
    assert engine == "tokenizers" and "the slower engine" in why


def test_gigatoken_begins_anew_when_it_has_grown(tokeniser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Gigatoken(tokeniser)
    first, before = fast._tokenizer, fast(TEXTS)
    assert fast._tokenizer is first
    monkeypatch.setattr(encode, "CACHE_BYTES", -(1 << 40))
    fast(TEXTS)
    assert fast._tokenizer is not first
    assert all(np.array_equal(a, b) for a, b in zip(before, fast(TEXTS), strict=True))


@pytest.fixture(scope="module")
def with_contractions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokeniser with an entry for 's, whose ids tell whether what stands before it is a letter or a digit."""
    folder = tmp_path_factory.mktemp("contractions")
    tokenisers.save(tokenisers.train_bpe(["a's b's c's d's 1's 2's "] * 9, 300), folder)
    return folder


SCRIPTS = [*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x17000), *range(0x1A000, 0x20000)]


def test_code_points_that_an_edition_of_unicode_does_not_know_have_the_judge_s_ids(with_contractions: Path) -> None:
    fast, judge = Gigatoken(with_contractions), Judge(with_contractions)
    texts = ["plain", "\ua7d2's", "naïve 漢字", "1\u0c5c x", "", "\U00010940's"]
    assert not encode._same(fast._encode, judge, texts)  # type: ignore[arg-type]
    assert encode._same(fast, judge, texts)
    assert [encode.holds_unassigned(text) for text in texts] == [False, True, False, True, False, True]


def test_engines_agree_on_every_assigned_code_point(with_contractions: Path) -> None:
    """But for Han, Hangul and Tangut, which are one class each. A newer Python knows more; the engines may not."""
    assigned = [chr(point) for point in SCRIPTS if unicodedata.category(chr(point)) not in ("Cn", "Cs")]
    texts = ["".join(f"a{c}'s 1{c}\n" for c in assigned[i : i + 1000]) for i in range(0, len(assigned), 1000)]
    assert not any(map(encode.holds_unassigned, texts))
    assert encode._same(Gigatoken(with_contractions), Judge(with_contractions), texts)
