"""Duplicates among all documents: the same text, and nearly the same by MinHash (Broder 1997).

A document's shingles are its word 5-grams; the share of equal entries in two signatures estimates the Jaccard
similarity of their shingles, with a standard error of at most sqrt(0.25 / 120) = 0.046. Candidates are those whose
signatures agree in a whole band (locality-sensitive hashing, Leskovec et al., Mining of Massive Datasets, section 3.4):
of pairs that are 0.8 similar 1 - (1 - 0.8^6)^20 = 99.8% become candidates, of 0.5 similar ones 27%. A candidate is a
near duplicate where the estimate reaches the threshold. Of documents joined by such pairs the first stays.

Bands are sorted one after another, so that the index is a few arrays over the documents and not a table over their
bands.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.cleaning.ngrams import Hashes, ngram_hashes, repeats

SHINGLE_WORDS = 5
BANDS, ROWS = 20, 6
LEAST_THRESHOLD = 0.7  # of pairs that are less similar fewer than nine in ten become candidates
THRESHOLD = 0.8  # MT-NLG's (Smith et al. 2022, arXiv:2201.11990, section 3.1)
SEED = 42
NO_SHINGLE = np.iinfo(np.uint32).max  # what the signature of a document without words is full of
CHUNK_PAIRS = 50_000  # candidates whose signatures are compared at a time

Indices = NDArray[np.int64]
Signatures = NDArray[np.uint32]


def signatures(documents: Sequence[Hashes]) -> Signatures:
    """MinHash signatures [BANDS, documents, ROWS] of documents given as the hashes of their words.

    A document of fewer than five words is one shingle. Bands come first, so that one is read at a time.
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
    """For every document the first one with the same digest, [documents]; digests are [documents, 2]."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in order
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    starts = np.flatnonzero(np.concatenate(([True], ~same)))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[starts], np.diff(np.concatenate((starts, [len(order)]))))
    return first


def first_similar(parts: Sequence[Signatures], alive: NDArray[np.bool_], threshold: float) -> Indices:
    """For every document the first one that it is joined to by near duplicates, itself where there is none.

    `parts` are signatures [BANDS, n, ROWS], memory-mapped or not, of consecutive documents; those that are not `alive`
    [documents] take no part. Memory: some 80 bytes a document.
    """
    wordless = np.concatenate([(part[0] == NO_SHINGLE).all(axis=1) for part in parts])
    documents = np.flatnonzero(alive & ~wordless)
    label = np.arange(len(alive))
    for band in range(BANDS):
        pairs = documents[_candidates(np.concatenate([_row_hashes(part[band]) for part in parts])[documents])]
        pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
        for start in range(0, len(pairs), CHUNK_PAIRS):
            chunk = pairs[start : start + CHUNK_PAIRS]
            label = join(label, chunk[similarity(parts, chunk) >= threshold])
    return label


def _candidates(keys: Hashes) -> Indices:
    """Pairs of rows with equal keys, [pairs, 2]: each with the first of its bucket and with the one before it.

    So a bucket is linear, not quadratic.
    """
    found = repeats(keys)
    first = np.repeat(found.rows[found.first], found.counts - 1)
    later, before = found.rows[~found.first], np.roll(found.rows, 1)[~found.first]
    return np.stack((np.concatenate((first, before)), np.concatenate((later, later))), 1)


def _row_hashes(rows: NDArray[np.uint32]) -> Hashes:
    """A hash of every row of [n, ROWS]: the six words of a row are hashed as a 6-gram is."""
    flat = ngram_hashes(rows.reshape(-1).astype(np.uint64), ROWS)
    return flat[::ROWS]


def similarity(parts: Sequence[Signatures], pairs: Indices) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of every pair of documents, [pairs]; pairs are [pairs, 2]."""
    left, right = _gather(parts, pairs[:, 0]), _gather(parts, pairs[:, 1])
    return (left == right).mean(axis=(0, 2))


def _gather(parts: Sequence[Signatures], documents: Indices) -> Signatures:
    """The signatures of documents, [BANDS, documents, ROWS], out of the parts that they are in."""
    ends = np.cumsum([part.shape[1] for part in parts])
    found = np.empty((BANDS, len(documents), ROWS), np.uint32)
    owner = np.searchsorted(ends, documents, side="right")
    for number in np.unique(owner):
        here = np.flatnonzero(owner == number)
        found[:, here] = parts[number][:, documents[here] - (ends[number] - parts[number].shape[1])]
    return found


def join(label: Indices, pairs: Indices) -> Indices:
    """Join the groups of every pair; a group is labelled with its first document, before and after."""
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
