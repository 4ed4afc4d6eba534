"""Duplicates among all documents: the same text, and nearly the same by MinHash (Broder 1997).

A document's shingles are its word 5-grams; the share of equal entries in two signatures estimates the Jaccard
similarity of their shingles, with a standard error of at most sqrt(0.25 / 120) = 0.046. Pairs whose signatures agree in
a whole band are candidates (locality-sensitive hashing, Leskovec et al., Mining of Massive Datasets, section 3.4). Of
pairs with similarity 0.8, 1 - (1 - 0.8^6)^20 = 99.8% become candidates; of pairs with 0.5, 27%. A candidate is a near
duplicate where the estimate reaches the threshold. Of documents that such pairs join the first stays.

Bands are sorted one after another, so the index is a few arrays over the documents and no table over all their bands.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.cleaning.ngrams import Hashes, ngram_hashes, repeats

SHINGLE_WORDS = 5
BANDS, ROWS = 20, 6
LEAST_THRESHOLD = 0.7  # below it, fewer than nine in ten similar pairs would become candidates and be found
THRESHOLD = 0.8  # MT-NLG's (Smith et al. 2022, arXiv:2201.11990, section 3.1)
SEED = 42
NO_SHINGLE = np.iinfo(np.uint32).max  # every number in the signature of a document without words
COMPARED_PAIRS = 50_000  # so many candidates are compared at a time, to bound the memory

Indices = NDArray[np.int64]
Signatures = NDArray[np.uint32]


def signatures(documents: Sequence[Hashes]) -> Signatures:
    """MinHash signatures [BANDS, documents, ROWS] of documents, which are given as the hashes of their words.

    A document of fewer than five words is one shingle. Bands are the first axis, because they are read one by one.
    """
    import rensa

    if not documents:
        return np.empty((BANDS, 0, ROWS), np.uint32)
    shingles = [ngram_hashes(words, max(1, min(SHINGLE_WORDS, len(words)))) for words in documents]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in shingles]))).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(shingles), offsets, BANDS * ROWS, SEED)
    rows = np.array(matrix.to_rows(), np.uint32).reshape(len(documents), BANDS, ROWS)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def first_equal(digests: NDArray[np.uint64]) -> Indices:
    """For every document, the first one with the same digest, [documents]. Digests are [documents, 2]."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in order
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    starts = np.flatnonzero(np.concatenate(([True], ~same)))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[starts], np.diff(np.concatenate((starts, [len(order)]))))
    return first


def first_similar(chunks: Sequence[Signatures], alive: NDArray[np.bool_], threshold: float) -> Indices:
    """For every document, the first one that near duplicates join it to; itself where there is none. [documents]

    `chunks` are signatures [BANDS, n, ROWS] of consecutive documents, memory-mapped or not. Documents that are not
    `alive` [documents] are left out. Memory: some 80 bytes a document.
    """
    wordless = np.concatenate([(chunk[0] == NO_SHINGLE).all(axis=1) for chunk in chunks])
    documents = np.flatnonzero(alive & ~wordless)
    label = np.arange(len(alive))
    for band in range(BANDS):
        pairs = documents[_candidates(np.concatenate([_row_hashes(chunk[band]) for chunk in chunks])[documents])]
        pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
        for start in range(0, len(pairs), COMPARED_PAIRS):
            some = pairs[start : start + COMPARED_PAIRS]
            label = join(label, some[similarity(chunks, some) >= threshold])
    return label


def _candidates(keys: Hashes) -> Indices:
    """Pairs of rows with equal keys, [pairs, 2]: each row with the first row of its key, and with the row before it.

    All pairs of n rows with the same key would be n^2 / 2 of them, and a page that is everywhere has millions of rows.
    """
    found = repeats(keys)
    first = np.repeat(found.rows[found.first], found.counts - 1)
    later, before = found.rows[~found.first], np.roll(found.rows, 1)[~found.first]
    return np.stack((np.concatenate((first, before)), np.concatenate((later, later))), 1)


def _row_hashes(rows: NDArray[np.uint32]) -> Hashes:
    """A hash of every row of [n, ROWS]: its six numbers are hashed as the words of a 6-gram are."""
    flat = ngram_hashes(rows.reshape(-1).astype(np.uint64), ROWS)
    return flat[::ROWS]


def similarity(chunks: Sequence[Signatures], pairs: Indices) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of every pair of documents, [pairs]; pairs are [pairs, 2]."""
    left, right = _gather(chunks, pairs[:, 0]), _gather(chunks, pairs[:, 1])
    return (left == right).mean(axis=(0, 2))


def _gather(chunks: Sequence[Signatures], documents: Indices) -> Signatures:
    """The signatures of some documents, [BANDS, documents, ROWS], from the chunks that hold them."""
    ends = np.cumsum([chunk.shape[1] for chunk in chunks])
    found = np.empty((BANDS, len(documents), ROWS), np.uint32)
    owner = np.searchsorted(ends, documents, side="right")
    for number in np.unique(owner):
        here = np.flatnonzero(owner == number)
        found[:, here] = chunks[number][:, documents[here] - (ends[number] - chunks[number].shape[1])]
    return found


def join(label: Indices, pairs: Indices) -> Indices:
    """Join the groups of both documents of every pair. The label of a group is its first document."""
    while True:
        ends = label[pairs]
        if (ends[:, 0] == ends[:, 1]).all():
            return label
        label = label.copy()
        lowest = ends.min(axis=1)
        np.minimum.at(label, ends[:, 0], lowest)
        np.minimum.at(label, ends[:, 1], lowest)
        while (label != label[label]).any():
            label = label[label]
