"""Overlap with evaluation sets: found by 13-grams and cut out, as GPT-3 and MT-NLG did.

Brown et al. 2020 (arXiv:2005.14165), appendix C; Smith et al. 2022 (arXiv:2201.11990), section 3.1. An n-gram of an
evaluation text that is found in a document is cut out with 200 characters on either side; pieces under 200 characters
go with it; a document cut in more than ten places goes as a whole. An n-gram found in more than ten documents is
a common phrase and stays. Evaluation texts of 8 to 12 words are looked for as a whole; shorter ones match by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.ngrams import Hashes, ngram_hashes, word_hashes, word_spans

LONGEST, SHORTEST = 13, 8  # words of an n-gram
MARGIN = 200  # characters
LEAST_PIECE = 200  # characters
MOST_CUTS = 10
COMMON_DOCUMENTS = 10
TABLE_BITS = 23  # of a hash, by which most n-grams are found not to be there without searching


@dataclass
class Evaluation:
    """The n-grams of evaluation sets, as sorted hashes by n; how many texts there were and how many too short."""

    hashes: dict[int, Hashes]
    texts: int = 0
    too_short: int = 0
    tables: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for n, hashes in self.hashes.items():
            self.tables[n] = np.zeros(1 << TABLE_BITS, bool)
            self.tables[n][_slot(hashes)] = True

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Evaluation":
        """Take the n-grams of evaluation texts."""
        found: dict[int, list[Hashes]] = {}
        count = too_short = 0
        for text in texts:
            words = word_hashes(text)
            count += 1
            if len(words) < SHORTEST:
                too_short += 1
            else:
                n = min(LONGEST, len(words))
                found.setdefault(n, []).append(ngram_hashes(words, n))
        return cls({n: np.unique(np.concatenate(found[n])) for n in sorted(found)}, count, too_short)

    def matches(self, words: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64], Hashes]:
        """Where a document holds n-grams of the evaluation sets: first words, lengths n and hashes, [matches]."""
        starts, lengths, hashes = [], [], []
        for n, known in self.hashes.items():
            grams = ngram_hashes(words, n)
            likely = np.flatnonzero(self.tables[n][_slot(grams)])
            place = np.searchsorted(known, grams[likely])
            at = likely[known[np.minimum(place, len(known) - 1)] == grams[likely]]
            starts.append(at)
            lengths.append(np.full(len(at), n))
            hashes.append(grams[at])
        if not starts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64)
        return np.concatenate(starts), np.concatenate(lengths), np.concatenate(hashes)


def _slot(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - TABLE_BITS)


def common(documents: NDArray[np.int64], hashes: Hashes) -> Hashes:
    """The n-grams that more than ten documents hold, sorted; both arguments [matches]."""
    distinct = np.unique(np.stack((hashes, documents.astype(np.uint64)), 1), axis=0)
    grams, counts = np.unique(distinct[:, 0], return_counts=True)
    return grams[counts > COMMON_DOCUMENTS]


def cut(text: str, evaluation: Evaluation, left_alone: Hashes) -> tuple[list[str], list[str]]:
    """What stays of a text, in pieces, and what is cut out; nothing stays of one cut in more than ten places."""
    starts, lengths, hashes = evaluation.matches(word_hashes(text))
    counts = ~np.isin(hashes, left_alone)
    if not counts.any():
        return [text], []
    spans = word_spans(text)
    windows = _merge(
        sorted(
            (max(0, int(spans[first, 0]) - MARGIN), min(len(text), int(spans[first + n - 1, 1]) + MARGIN))
            for first, n in zip(starts[counts], lengths[counts], strict=True)
        )
    )
    removed = [text[begin:end] for begin, end in windows]
    if len(windows) > MOST_CUTS:
        return [], removed
    edges = [0, *(edge for window in windows for edge in window), len(text)]
    pieces = [text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return [piece for piece in pieces if len(piece) >= LEAST_PIECE], removed


def _merge(windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted windows that touch."""
    merged: list[tuple[int, int]] = []
    for begin, end in windows:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
