"""What a teacher expects at each token of prepared shards: beside each shard a file, written once.

It has a record for each token: the teacher's likeliest ids in its place, and the logarithms of their probabilities at
a temperature, as fp16, with that of all other ids together behind them. `<name>.json` in the same folder is written
last. It says what was asked of which teacher, and lists the files.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.corpus.fetch import file_sha256
from data.tokens import prepare
from data.tokens.beside import Beside
from data.tokens.shards import token_dtype, with_suffix
from support.errors import UserError
from support.json_object import JsonObject

AGAIN = "and prepare the data again"


def record_dtype(top_k: int, entries: int) -> np.dtype[np.void]:
    """The record of a token, for a tokeniser of so many entries."""
    return np.dtype([("ids", token_dtype(entries), (top_k,)), ("odds", np.float16, (top_k + 1,))])


def manifest_of(folder: Path, name: str) -> Path:
    """The file that says that a teacher's files are whole."""
    return folder / f"{name}.json"


class Taught:
    """A teacher's records of the training shards in `folder`.

    Errors: `UserError` where a file is missing or of another size, or, where `hashes` says so, was changed after the
    manifest was written.
    """

    def __init__(self, folder: Path, name: str, hashes: bool = True) -> None:
        path = manifest_of(folder, name)
        try:
            self.manifest: JsonObject = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            raise UserError(f"what the teacher {name} expects is not in {folder}; prepare the data again") from None
        self.dtype = record_dtype(self.manifest["top_k"], self.manifest["entries"])
        shards, suffix = prepare.shards(folder, "train"), f".{name}"
        self.rows = Beside(shards, suffix, self.dtype)
        finished_at, began, hashed = path.stat().st_mtime_ns, time.time_ns(), False
        for shard, entry in zip(shards.shards, self.manifest["shards"], strict=True):
            file = with_suffix(shard.prefix, suffix)
            if not hashes or file.stat().st_mtime_ns <= finished_at:
                continue
            hashed = True
            if file_sha256(file) != entry["sha256"]:
                raise UserError(f"{file} was changed after it was written; remove it and {path}, {AGAIN}")
        if hashed:  # a copied folder has new times
            with suppress(OSError):
                os.utime(path, ns=(began, began))
