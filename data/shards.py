"""Token shards in Megatron's `.bin`/`.idx` format, written once and memory-mapped for reading.

`.bin` is the tokens of all documents, end to end. `.idx` is, little-endian: the magic `MMIDIDX\\0\\0`, version 1 (u64),
a dtype code (u8), the number of sequences and of document boundaries (u64 each), the length of each sequence in tokens
(i32), its byte offset in `.bin` (i64), and the index of the first sequence of each document (i64), one more at the end.
Here a sequence is a document. Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The smallest type that Megatron reads and that holds every id below `vocab_size`."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32


class ShardWriter:
    """Writes one shard. Use as a context manager; a shard that was not finished leaves nothing behind.

    `prefix` is the path without suffix. Both files are written under other names and renamed at the end, `.idx`
    last: a shard whose `.idx` exists is whole.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(token_dtype(vocab_size))
        self._lengths: list[int] = []
        self._bin_path = prefix.with_name(prefix.name + ".bin.partial")
        self._idx_path = prefix.with_name(prefix.name + ".idx.partial")

    def __enter__(self) -> "ShardWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(self._bin_path, "wb")
        return self

    def add(self, tokens: Iterable[int]) -> None:
        """Append one document."""
        array = np.asarray(tokens, dtype=self.dtype)
        self._bin.write(array.tobytes())
        self._lengths.append(array.size)

    @property
    def num_tokens(self) -> int:
        return sum(self._lengths)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin.close()
            self._bin_path.unlink(missing_ok=True)
            self._idx_path.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._bin.flush()
        os.fsync(self._bin.fileno())
        lengths = np.asarray(self._lengths, dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        pointers = ends - lengths.astype(np.int64) * self.dtype.itemsize
        with open(self._idx_path, "wb") as index:
            index.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype.type], len(lengths), len(lengths) + 1))
            index.write(lengths.tobytes())
            index.write(pointers.tobytes())
            index.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
            index.flush()
            os.fsync(index.fileno())
        os.replace(self._bin_path, self.prefix.with_name(self.prefix.name + ".bin"))
        os.replace(self._idx_path, self.prefix.with_name(self.prefix.name + ".idx"))


class Shard:
    """A memory-mapped shard: `tokens` [num_tokens] and `lengths` [num_documents].

    Errors: `ValueError` where a file is missing, is no index, or the two do not belong together.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin_path, idx_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
        for path in (bin_path, idx_path):
            if not path.exists():
                raise ValueError(f"shard file {path} does not exist; remove its folder and prepare the data again")
        raw = idx_path.read_bytes()
        if len(raw) < HEADER.size or raw[:9] != MAGIC:
            raise ValueError(f"{idx_path} is not a Megatron index; remove its folder and prepare the data again")
        _, version, code, sequences, boundaries = HEADER.unpack_from(raw)
        if version != VERSION or code not in DTYPES:
            raise ValueError(f"{idx_path} has version {version} and dtype code {code}; this reads version {VERSION}")
        expected = HEADER.size + sequences * (4 + 8) + boundaries * 8
        if len(raw) != expected:
            raise ValueError(
                f"{idx_path} has {len(raw)} bytes where its header says {expected}; remove its folder and prepare the "
                "data again"
            )
        self.dtype = np.dtype(DTYPES[code])
        self.lengths: NDArray[np.int32] = np.frombuffer(raw, np.int32, sequences, HEADER.size)
        self.num_tokens = int(self.lengths.sum(dtype=np.int64))
        size = bin_path.stat().st_size
        if size != self.num_tokens * self.dtype.itemsize:
            raise ValueError(
                f"{bin_path} has {size} bytes where its index says {self.num_tokens * self.dtype.itemsize}: "
                "it is truncated or belongs to another index; remove its folder and prepare the data again"
            )
        if self.num_tokens == 0:
            raise ValueError(f"shard {prefix} holds no tokens; remove its folder and prepare the data again")
        self.tokens: NDArray[np.generic] = np.memmap(bin_path, self.dtype, "r")
