"""What a teacher, or the reference of pairs, expects at each token of prepared shards: files that are written once.

A teacher's has a record for each token: the teacher's likeliest ids in its place, and the logarithms of their
probabilities at a temperature, as fp16, with that of all other ids together behind them. A reference's has the
logarithm of the probability of each token of an answer, as fp32, and there are files beside the validation shards too.
`<name>.json` in the same folder is written last. It says what was asked of which model, and lists the files.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.corpus.document import SPLITS
from data.corpus.fetch import file_sha256
from data.tokens import prepare
from data.tokens.beside import Beside
from data.tokens.shards import token_dtype, with_suffix
from support.errors import UserError
from support.json_object import JsonObject

TEACHER, REFERENCE = KINDS = "teacher", "reference"  # begin the names
AGAIN = {TEACHER: "prepare the data again", REFERENCE: "start a new run from the same model, which writes it again"}


def record_dtype(top_k: int, entries: int) -> np.dtype[np.void]:
    """The record of a token, for a tokeniser of so many entries."""
    return np.dtype([("ids", token_dtype(entries), (top_k,)), ("odds", np.float16, (top_k + 1,))])


def manifest_of(folder: Path, name: str) -> Path:
    """The file that says that a teacher's files are whole."""
    return folder / f"{name}.json"


def splits(kind: str) -> tuple[str, ...]:
    """The splits whose shards a kind of model reads."""
    return SPLITS[:2] if kind == REFERENCE else SPLITS[:1]


class Taught:
    """The records of the shards in `folder`: `rows` of each split.

    Errors: `UserError` where a file is missing or of another size, or, where `hashes` says so, was changed after the
    manifest was written.
    """

    def __init__(self, folder: Path, name: str, hashes: bool = True) -> None:
        path, self.kind, suffix = manifest_of(folder, name), name.partition("-")[0], f".{name}"
        again = AGAIN[self.kind]
        try:
            self.manifest: JsonObject = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            raise UserError(f"what {name} gave is not in {folder}; restore it, or {again}") from None
        asked = (self.manifest["top_k"], self.manifest["entries"]) if self.kind == TEACHER else None
        dtype: np.dtype[Any] = record_dtype(*asked) if asked else np.dtype(np.float32)
        opened = {split: prepare.shards(folder, split) for split in splits(self.kind)}
        self.rows = {split: Beside(shards, suffix, dtype) for split, shards in opened.items()}
        every = [shard for shards in opened.values() for shard in shards.shards]
        finished_at, began, hashed = path.stat().st_mtime_ns, time.time_ns(), False
        for shard, entry in zip(every, self.manifest["shards"], strict=True):
            file = with_suffix(shard.prefix, suffix)
            if not hashes or file.stat().st_mtime_ns <= finished_at:
                continue
            hashed = True
            if file_sha256(file) != entry["sha256"]:
                raise UserError(f"{file} was changed after it was written; remove it and {path}, and {again}")
        if hashed:  # a copied folder has new times
            with suppress(OSError):
                os.utime(path, ns=(began, began))
