"""Rows to learn a task from, and how they are parted into what is trained on and what is held out."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from support.json_object import JsonObject

ORDER = ("train", "validation", "test")
VALIDATION, TEST = 5, 10  # of a hundred groups
LONGEST = 20_000  # characters of a text: longer are lists of thousands of packages or fonts


@dataclass(frozen=True)
class Row:
    """A row in trl's form: `content` has "prompt" and "completion", or "messages".

    Rows of the same `group` (an article, a source package) stay together. `text` is what near duplicates are told by.
    `split` is the source's own, "" where the group decides.
    """

    content: JsonObject
    group: str
    text: str
    split: str = ""


@dataclass(frozen=True)
class Parted:
    """Rows with their field "split", how many each split has, and how many were left out, by the reason."""

    rows: list[JsonObject]
    counts: Counter[str]
    left_out: Counter[str]


def written(prompt: str, completion: str, group: str, text: str = "", **more: object) -> Row:
    """A row of a prompt and its completion; near duplicates are told by the prompt, or by `text`."""
    return Row({"prompt": prompt, "completion": completion, **more}, group, text or prompt)


def part(rows: Iterable[Row]) -> Parted:
    """Part rows by their groups, as the groups' names alone decide, in an order that they decide too.

    A held-out row is left out where a nearly equal one (MinHash, similarity of 0.8) is in a split nearer to training.
    Of equal rows one stays; a text of more than `LONGEST` characters makes none.
    """
    everything = sorted(rows, key=lambda row: _hash(row.group))
    given = [row for row in everything if len(row.text) <= LONGEST]
    splits = [row.split or drawn(row.group) for row in given]
    nearest = _nearest([row.text for row in given], [ORDER.index(split) for split in splits])
    kept, known, left_out = list[JsonObject](), set[bytes](), Counter[str]()
    left_out["too long"] = len(everything) - len(given)
    for row, split, near in zip(given, splits, nearest, strict=True):
        said = hashlib.sha256(json.dumps(row.content).encode()).digest()
        if split != "train" and near != ORDER.index(split):
            left_out["nearly trained on"] += 1
        elif said in known:
            left_out["equal to another"] += 1
        else:
            known.add(said)
            kept.append({**row.content, "split": split})
    return Parted(kept, Counter(row["split"] for row in kept), +left_out)


def _hash(group: str) -> int:
    return zlib.crc32(group.encode())


def drawn(group: str) -> str:
    """The split of a group, by its name alone."""
    bucket = _hash(group) % 100
    return "validation" if bucket < VALIDATION else "test" if bucket < VALIDATION + TEST else "train"


def _nearest(texts: Sequence[str], splits: Sequence[int]) -> list[int]:
    """For each text the split nearest to training, as a number, that one nearly equal to it has."""
    import numpy as np

    from data.cleaning.duplicates import THRESHOLD, first_similar, signatures
    from data.cleaning.ngrams import word_hashes

    if not texts:
        return []
    signed = signatures([word_hashes(text) for text in texts])
    label = first_similar([signed], np.ones(len(texts), bool), THRESHOLD)
    least = np.full(len(texts), len(ORDER))
    np.minimum.at(least, label, np.array(splits))
    return [int(number) for number in least[label]]
