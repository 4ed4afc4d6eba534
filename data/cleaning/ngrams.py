"""Words and n-grams as 64-bit hashes, by which near duplicates and overlap with evaluation sets are found.

A word is a run of letters and digits, in lower case. Chinese and Japanese put no spaces between words, so each of their
characters is a word. Neither punctuation nor case nor line breaks count.
"""

import re
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W{_HAN_AND_KANA}]+|[{_HAN_AND_KANA}]")
# A table for bytes of UTF-8: ASCII that is no letter, digit or underscore becomes a space, and capitals small letters.
_SPACED = bytes(code if code > 127 or chr(code).isalnum() or chr(code) == "_" else 32 for code in range(256)).lower()
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it is one-to-one modulo 2**64


def word_hashes(text: str) -> Hashes:
    """The hash of every word of a text, in order, [words]."""
    # Most words are ASCII, and to split bytes at spaces is several times as fast as to match a pattern.
    words = text.encode().translate(_SPACED).split()
    if not text.isascii():
        words = [part for word in words for part in ((word,) if word.isascii() else _unicode_words(word))]
    return np.fromiter(map(xxhash.xxh3_64_intdigest, words), np.uint64, len(words))


def _unicode_words(word: bytes) -> list[bytes]:
    return [part.encode() for part in _WORD.findall(_lower(word.decode()))]


def word_spans(text: str) -> NDArray[np.int64]:
    """Where every word of `word_hashes` begins and ends, in characters, [words, 2]."""
    spans = [match.span() for match in _WORD.finditer(_lower(text))]
    return np.array(spans, np.int64).reshape(-1, 2)


def _lower(text: str) -> str:
    """Lower case of the same length, so that places stay: the few characters that become two (İ) are not changed."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def extend(grams: Hashes, words: Hashes) -> Hashes:
    """The hashes of (n + 1)-grams, from those of n-grams and of the words that follow them: a polynomial."""
    return grams * _MULTIPLIER + words


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of every run of `n` words, [words - n + 1]; none where there are fewer words.

    It is a polynomial of the words. Its bits are mixed at the end, because callers look at a few of them only.
    """
    count = max(0, len(words) - n + 1)
    hashes = words[:count]
    for offset in range(1, n):
        hashes = extend(hashes, words[offset : offset + count])
    hashes = (hashes ^ hashes >> np.uint64(32)) * _MULTIPLIER
    return hashes ^ hashes >> np.uint64(29)


class Repeats(NamedTuple):
    """The rows whose keys occur more than once, sorted by key and then by row.

    `first` [rows] marks the first row of each key. `counts` [keys] says how often each key occurs.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.bool_]
    counts: NDArray[np.int64]


def repeats(keys: Hashes) -> Repeats:
    """Find the keys that occur more than once.

    The number of a row replaces the low bits of its key, so that one array is sorted, in place. Keys that differ only
    in those bits count as equal: of n hashes these are about n^3 / 2^65 pairs.
    """
    low = np.uint64((1 << len(keys).bit_length()) - 1)
    packed = keys & ~low | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    same = np.zeros(len(keys) + 1, bool)  # whether a key equals the one before it
    same[1:-1] = packed[1:] ^ packed[:-1] <= low
    rows = np.flatnonzero(same[1:] | same[:-1])
    first = ~same[rows]
    counts = np.diff(np.concatenate((np.flatnonzero(first), [len(rows)])))
    return Repeats((packed[rows] & low).astype(np.int64), first, counts)
