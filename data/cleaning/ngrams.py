"""Words and n-grams as 64-bit hashes: what near duplicates and overlap with evaluation sets are found by.

A word is a run of letters and digits, in lower case; of Chinese and Japanese, which put no spaces between words, every
character. So neither punctuation nor case nor line breaks count.
"""

import re
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W{_HAN_AND_KANA}]+|[{_HAN_AND_KANA}]")
# In UTF-8: ASCII that is no letter, digit or underscore becomes a space, upper case lower, and the rest stays.
_SPACED = bytes(code if code > 127 or chr(code).isalnum() or chr(code) == "_" else 32 for code in range(256)).lower()
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it is one-to-one modulo 2**64


def word_hashes(text: str) -> Hashes:
    """The hash of every word of a text, in order, [words]."""
    # Most words are ASCII, and splitting bytes at spaces is several times as fast as matching.
    words = text.encode().translate(_SPACED).split()
    if not text.isascii():
        words = [part for word in words for part in ((word,) if word.isascii() else _unicode_words(word))]
    return np.fromiter(map(xxhash.xxh3_64_intdigest, words), np.uint64, len(words))


def _unicode_words(word: bytes) -> list[bytes]:
    return [part.encode() for part in _WORD.findall(_lower(word.decode()))]


def word_spans(text: str) -> NDArray[np.int64]:
    """Where every word begins and ends, in characters, [words, 2]; the words that `word_hashes` hashes."""
    spans = [match.span() for match in _WORD.finditer(_lower(text))]
    return np.array(spans, np.int64).reshape(-1, 2)


def _lower(text: str) -> str:
    """Lower case of the same length: the few characters that become two (İ) stay as they are."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def extend(grams: Hashes, words: Hashes) -> Hashes:
    """Hashes of n-grams and of the words that follow them, made into those of the longer n-grams: a polynomial."""
    return grams * _MULTIPLIER + words


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of every run of `n` words, [words - n + 1], none where there are fewer: a polynomial, then mixed."""
    count = max(0, len(words) - n + 1)
    hashes = words[:count]
    for offset in range(1, n):
        hashes = extend(hashes, words[offset : offset + count])
    hashes = (hashes ^ hashes >> np.uint64(32)) * _MULTIPLIER
    return hashes ^ hashes >> np.uint64(29)


class Repeats(NamedTuple):
    """The rows whose keys occur more than once, sorted by key and then by row; `first` [rows] marks those that are the
    first with their key, `counts` says how often the key of each of these occurs.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.bool_]
    counts: NDArray[np.int64]


def repeats(keys: Hashes) -> Repeats:
    """Which keys occur more than once.

    Row numbers take the place of the low bits of the keys, so that a single array is sorted, and in place. Keys that
    differ in those bits alone pass for equal: of n hashes about n^3 / 2^65 pairs.
    """
    low = np.uint64((1 << len(keys).bit_length()) - 1)
    packed = keys & ~low | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    same = np.zeros(len(keys) + 1, bool)  # as the one before
    same[1:-1] = packed[1:] ^ packed[:-1] <= low
    rows = np.flatnonzero(same[1:] | same[:-1])
    first = ~same[rows]
    counts = np.diff(np.concatenate((np.flatnonzero(first), [len(rows)])))
    return Repeats((packed[rows] & low).astype(np.int64), first, counts)
