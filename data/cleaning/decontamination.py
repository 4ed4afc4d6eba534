"""Overlap with evaluation sets: found by 13-grams and cut out, as GPT-3 and MT-NLG did.

Brown et al. 2020 (arXiv:2005.14165), appendix C; Smith et al. 2022 (arXiv:2201.11990), section 3.1. An n-gram of an
evaluation text that is found in a document is cut out with 200 characters on either side. Pieces under 200 characters
go with it, and a document cut in more than ten places goes as a whole. An n-gram that is in more than ten documents is
a common phrase and stays, even if it is all of a question. Therefore every text that was found is listed, with its
fate. Evaluation texts of 8 to 12 words are looked for as a whole. Shorter ones are not looked for: they match by
chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.cleaning.ngrams import Hashes, ngram_hashes, word_hashes, word_spans
from data.corpus.sources import Document
from support.json_object import JsonObject

LONGEST, SHORTEST = 13, 8  # words of an n-gram
MARGIN = 200  # characters
LEAST_PIECE = 200  # characters
MOST_CUTS = 10
COMMON_DOCUMENTS = 10
TABLE_BITS = 23  # of a hash; a table by these tells of most n-grams, without a search, that they are not there
FIRST_WORDS = 80  # characters of an evaluation text that a report shows


@dataclass
class Evaluation:
    """The n-grams of evaluation sets, as sorted hashes by n. It counts the texts, and those that are too short."""

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
            count += 1
            n, grams = _grams(text)
            if n:
                found.setdefault(n, []).append(grams)
            else:
                too_short += 1
        return cls({n: np.unique(np.concatenate(found[n])) for n in sorted(found)}, count, too_short)

    def matches(self, words: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64], Hashes]:
        """Where a document holds n-grams of the evaluation sets: first words, lengths n and hashes, [matches]."""
        starts, lengths, hashes = [], [], []
        for n, known in self.hashes.items():
            grams = ngram_hashes(words, n)
            likely = np.flatnonzero(self.tables[n][_slot(grams)])
            at = likely[_places(known, grams[likely]) >= 0]
            starts.append(at)
            lengths.append(np.full(len(at), n))
            hashes.append(grams[at])
        if not starts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64)
        return np.concatenate(starts), np.concatenate(lengths), np.concatenate(hashes)


def _slot(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - TABLE_BITS)


def _places(known: Hashes, wanted: Hashes) -> NDArray[np.int64]:
    """The place of each hash among sorted ones, or -1 where it is not among them, [wanted]."""
    if not len(known):
        return np.full(len(wanted), -1)
    places = np.searchsorted(known, wanted)
    places[known[np.minimum(places, len(known) - 1)] != wanted] = -1
    return places


def _grams(text: str) -> tuple[int, Hashes]:
    """The n-grams of an evaluation text, and their n. Where it is too short, n is 0 and there are none."""
    words = word_hashes(text)
    n = min(LONGEST, len(words)) if len(words) >= SHORTEST else 0
    return n, ngram_hashes(words, n) if n else np.empty(0, np.uint64)


@dataclass(frozen=True)
class Found:
    """What became of an evaluation text that is in the corpus.

    `number` is its place among the evaluation texts, from 1. `documents` is how many documents hold an n-gram of it.
    It was cut out of `cut_from` of them. The others, `left_in`, hold only n-grams that are in more than ten documents.
    `whole_in` is how many documents hold all of it.
    """

    number: int
    name: str
    begins: str
    fate: str
    documents: int
    cut_from: int
    left_in: int
    whole_in: int


@dataclass(frozen=True)
class Overlap:
    """Which n-grams are in which documents: n-gram i is in `documents[edges[i] : edges[i + 1]]`."""

    grams: Hashes
    edges: NDArray[np.int64]
    documents: NDArray[np.int64]

    @classmethod
    def of(cls, documents: NDArray[np.int64], hashes: Hashes) -> "Overlap":
        """Take each n-gram once for a document. Both arguments are [matches]."""
        order = np.lexsort((documents, hashes))
        hashes, documents = hashes[order], documents[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (documents[1:] != documents[:-1])
        grams, first = np.unique(hashes[new], return_index=True)
        return cls(grams, np.append(first, np.count_nonzero(new)), documents[new])

    @property
    def is_common(self) -> NDArray[np.bool_]:
        """Whether more than ten documents hold an n-gram, for each of them, [n-grams]."""
        return np.diff(self.edges) > COMMON_DOCUMENTS

    @property
    def common(self) -> Hashes:
        """The n-grams that more than ten documents hold, sorted."""
        return self.grams[self.is_common]

    def report(self, texts: Iterable[Document]) -> JsonObject:
        """What became of the evaluation texts, as JSON: their number, and a `Found` for each that was found."""
        is_common = self.is_common

        @lru_cache(maxsize=1024)  # many texts begin alike and are found by the same few n-grams
        def count(key: bytes) -> tuple[int, int, int]:
            rows = np.frombuffer(key, np.int64)
            documents, grams = np.unique(self._documents(rows), return_counts=True)
            cut = np.unique(self._documents(rows[~is_common[rows]]))
            return len(documents), len(cut), int(np.count_nonzero(grams == len(rows)))

        number = too_short = 0
        found = []
        for number, text in enumerate(texts, start=1):
            n, grams = _grams(text.text)
            too_short += not n
            wanted = np.unique(grams)
            rows = _places(self.grams, wanted)
            rows = rows[rows >= 0]
            if len(rows):
                documents, cut, whole = count(rows.tobytes())
                fate = "cut" if cut else f"left: in more than {COMMON_DOCUMENTS} documents"
                whole_in = whole if len(rows) == len(wanted) else 0
                begins = " ".join(text.text[: 2 * FIRST_WORDS].split())[:FIRST_WORDS].rstrip()
                found.append(asdict(Found(number, text.name, begins, fate, documents, cut, documents - cut, whole_in)))
        left = sum(not each["cut_from"] for each in found)
        counts = {"texts": number, "too_short": too_short, "cut": len(found) - left, "left": left}
        return {**counts, "found": found}

    def _documents(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The documents that hold some n-grams; one that holds several of them comes several times."""
        parts = [self.documents[self.edges[row] : self.edges[row + 1]] for row in rows]
        return np.concatenate([np.empty(0, np.int64), *parts])


def summary(report: JsonObject | None) -> list[str]:
    """The lines to print of an `Overlap.report`: the counts, and a warning where a whole text stays in the corpus."""
    if report is None:
        return []
    found = report["found"]
    whole = [each for each in found if each["whole_in"] and not each["cut_from"]]
    short = f"; {report['too_short']:,} too short to look for" if report["too_short"] else ""
    lines = [
        f"evaluation texts: {len(found):,} of {report['texts']:,} found in the corpus, {report['cut']:,} cut out, "
        f"{report['left']:,} left ({len(whole):,} as a whole){short}"
    ]
    if whole:
        worst = max(whole, key=lambda each: each["whole_in"])
        lines.append(
            f"warning: evaluation texts that stay in the corpus as a whole: {len(whole):,}. What is in more than "
            f"{COMMON_DOCUMENTS} documents counts as a common phrase (GPT-3's rule), so a score on them is not to be "
            f"trusted. The most frequent is in {worst['whole_in']:,} documents: text {worst['number']:,} "
            f"({worst['name']}), {worst['begins']!r}"
        )
    return lines


def cut(text: str, evaluation: Evaluation, left_alone: Hashes) -> tuple[list[str], list[str]]:
    """The pieces of a text that stay, and those that are cut out. Nothing stays where there are more than ten cuts."""
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
