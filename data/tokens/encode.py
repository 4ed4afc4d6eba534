"""Texts to token ids. The tokenizers library is the judge; gigatoken does the work where it gives the same ids.

Both read the `tokenizer.json` of the prepared folder. A special token's name inside a document is plain text: only the
end of a document is an end-of-document token.
"""

import importlib.metadata
import json
import os
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from support.errors import UserError

Tokens = NDArray[np.integer]
CACHE_BYTES = 64 << 20  # gigatoken remembers every word; when this process has grown by so much, it begins anew
# Engines have been seen to differ in these: contractions, runs of spaces, line ends, digits, scripts without spaces,
# combining marks, joined emoji, control characters, ends of words, the names of special tokens.
TRIALS = (
    "I'll say we've it's HE'S we're", "a  b   c\t\td \n\n e\r\n\r\nf   ", "x=1234567.89e-10", "", " ", "\n",
    "漢字かな交じり文。한국어", "العربية עברית हिन्दी ไทย", "e\u0301 n\u0303 \u0e33\u0e01", "naïve—café… “q”",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3", "\x00\x01\x7f\x85\xa0\u2028\u3000\ufeff",
    "<|endoftext|> </s> <s> [MASK] <unk>", "\U0010ffff\ue000",
)  # fmt: skip


class Encoder(Protocol):
    """Encodes a batch. Returns the ids of all texts, one text after the other, and how many ids each text has."""

    name: str

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Tokens]: ...


class Judge:
    """The tokenizers library, whose ids count as right. With `special` the name of a special token is that token."""

    def __init__(self, tokeniser: Path, special: bool = False) -> None:
        from tokenizers import Tokenizer

        self.name = f"tokenizers {importlib.metadata.version('tokenizers')}"
        self._tokenizer = Tokenizer.from_file(str(tokeniser / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = not special
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Tokens]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [array("I", each.ids) for each in found]  # twice as fast as by way of numpy
        tokens = np.concatenate([np.frombuffer(part, np.uint32) for part in ids])
        return tokens, np.fromiter(map(len, ids), np.int64, len(ids))


@cache
def _unassigned() -> NDArray[np.bool_]:
    """For every code point: whether it is unassigned in the edition of Unicode that this Python knows.

    Engines carry tables of different editions. A code point that is a letter in one edition and unassigned in another
    makes them split words differently. One that is assigned keeps its class in later editions, so it is safe.
    """
    result = np.ones(0x110000, np.bool_)
    # Planes 4 to 13 are empty, and 15 and 16 are for private use: to look at each of their points would take long.
    for first, end in ((0, 0x40000), (0xE0000, 0xE1000)):
        points = range(first, end)
        result[first:end] = np.fromiter((unicodedata.category(chr(p)) == "Cn" for p in points), np.bool_, len(points))
    result[0xF0000:] = False
    return result


def holds_unassigned(text: str) -> bool:
    """Whether a text has a code point that engines may take for different things."""
    if text.isascii():
        return False
    points = np.frombuffer(text.encode("utf-32-le"), np.int32)
    return bool(_unassigned().take(points[points > 127], mode="clip").any())  # clip: without checks of bounds


class Gigatoken:
    """The gigatoken library. The judge encodes the rare texts that have unassigned code points.

    gigatoken remembers the words that it has met. That memory grows with the corpus, so it is dropped now and then.
    """

    def __init__(self, tokeniser: Path) -> None:
        self._tokeniser = tokeniser
        self._judge: Judge | None = None
        self.name = f"gigatoken {importlib.metadata.version('gigatoken')}"
        described = json.loads((tokeniser / "tokenizer.json").read_text())
        described["added_tokens"] = [token for token in described["added_tokens"] if not token["special"]]
        self._described = json.dumps(described)
        self._begin()
        _unassigned()  # it takes a moment: now, while the process starts, and not in the first text

    def _begin(self) -> None:
        import gigatoken

        self._tokenizer: Any = None  # the old one goes before the new one comes
        self._tokenizer = gigatoken.Tokenizer.from_json(self._described)
        self._began_at = _resident_bytes()

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Tokens]:
        if not holds_unassigned("".join(text for text in texts if not text.isascii())):
            return self._encode(texts)
        self._judge = self._judge or Judge(self._tokeniser)
        found = [self._judge([text]) if holds_unassigned(text) else self._encode([text]) for text in texts]
        return np.concatenate([tokens for tokens, _ in found]), np.concatenate([lengths for _, lengths in found])

    def _encode(self, texts: Sequence[str]) -> tuple[Tokens, Tokens]:
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        tokens = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        if _resident_bytes() > self._began_at + CACHE_BYTES:
            self._begin()
        return tokens, np.diff(offsets)


ENGINES: dict[str, Callable[[Path], Encoder]] = {"gigatoken": Gigatoken, "tokenizers": Judge}


def choose(tokeniser: Path, sample: Sequence[str], wanted: str = "auto") -> tuple[str, str]:
    """The engine to encode a corpus with, by its key in `ENGINES`, and a line that says why.

    With "auto" it is gigatoken where that gives the judge's ids on `sample`, texts of the corpus, and on our own
    trials. Errors: `UserError` where gigatoken was asked for and cannot do it.
    """
    if wanted == "tokenizers":
        return wanted, f"encoding with {Judge(tokeniser).name}, as asked for"
    try:
        fast: Encoder = Gigatoken(tokeniser)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        reason = "gigatoken is not installed (pip install gigatoken)"
    except Exception as error:  # gigatoken documents no error for a tokeniser that it cannot read
        reason = f"gigatoken does not read this tokeniser ({str(error).splitlines()[0]})"
    else:
        judge = Judge(tokeniser)
        texts = [*TRIALS, *sample]
        if _same(fast, judge, texts):
            return "gigatoken", f"encoding with {fast.name}: the ids of {judge.name} on {_size(texts)} of this corpus"
        reason = f"{fast.name} gives other ids than {judge.name} on this corpus"
    if wanted != "auto":
        raise UserError(f"engine {wanted} cannot encode this corpus: {reason}; leave --engine out")
    return "tokenizers", f"encoding with {Judge(tokeniser).name}, the slower engine: {reason}"


def _same(one: Encoder, other: Encoder, texts: Sequence[str]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one(texts), other(texts), strict=True))


def _size(texts: Sequence[str]) -> str:
    return f"{sum(len(text.encode()) for text in texts) / 1e6:.2f} MB"


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
