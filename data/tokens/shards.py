"""Token shards in Megatron's `.bin`/`.idx` format, written once and memory-mapped for reading.

`.bin` is the tokens of all documents, end to end. `.idx` is, little-endian: the magic `MMIDIDX\\0\\0`, version 1 (u64),
a dtype code (u8), the number of sequences and of document boundaries (u64 each), the length of each sequence in tokens
(i32), its byte offset in `.bin` (i64), and the index of the first sequence of each document (i64), one more at the end.
Here a sequence is a document. Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import hashlib
import itertools
import resource
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.errors import UserError
from support.files import give_name, scratch_beside

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
MOST_TOKENS = np.iinfo(np.int32).max  # of a document: its length is an i32
BLOCK = 1 << 16
MANY_SHARDS = 64
AGAIN = "remove its folder and prepare the data again"

Ints = NDArray[np.int64]


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The smallest type that Megatron reads and that holds every id below `vocab_size`."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32


def with_suffix(prefix: Path, suffix: str) -> Path:
    """The file of a shard; a prefix may have dots of its own."""
    return prefix.with_name(prefix.name + suffix)


def digest(prefix: Path) -> str:
    """Fingerprint of a shard: SHA-256 over the SHA-256 of `.bin` and of `.idx`, in hexadecimal."""
    whole = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        with open(with_suffix(prefix, suffix), "rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def write_index(path: Path, dtype: np.dtype[np.generic], lengths: NDArray[np.int32]) -> str:
    """Write an `.idx` for documents of these lengths in tokens; return its SHA-256.

    It works in blocks that stay in the processor's cache. Whole arrays of ten million documents would be new memory,
    and the page faults would take longer than the work.
    """
    count, hashed = len(lengths), hashlib.sha256()
    with open(path, "wb") as index:

        def write(part: bytes | memoryview) -> None:
            hashed.update(part)
            index.write(part)

        write(HEADER.pack(MAGIC, VERSION, CODES[dtype.type], count, count + 1))
        write(np.ascontiguousarray(lengths).data)
        end = 0
        for first in range(0, count, BLOCK):
            ends = np.cumsum(lengths[first : first + BLOCK], dtype=np.int64) + end
            write(((ends - lengths[first : first + BLOCK]) * dtype.itemsize).data)
            end = int(ends[-1])
        for first in range(0, count + 1, BLOCK):
            write(np.arange(first, min(first + BLOCK, count + 1), dtype=np.int64).data)
    return hashed.hexdigest()


class ShardWriter:
    """Writes one shard. Use as a context manager: where the block ends with an error, nothing is left behind.

    `prefix` is the path without suffix. Both files are written under scratch names of this process and renamed at the
    end, `.idx` last. So a shard whose `.idx` exists is whole, and processes that write the same shard do no harm.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix, self.vocab_size = prefix, vocab_size
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.num_tokens = 0
        self.sha256 = ""  # what `digest` returns, once the shard is finished
        self._lengths = array("i")
        self._bin_path, self._idx_path = (scratch_beside(with_suffix(prefix, suffix)) for suffix in (".bin", ".idx"))
        self._bin = open(self._bin_path, "wb")  # noqa: SIM115
        self._hash = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        return self

    def add(self, tokens: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """Append documents. `tokens` holds theirs, one document after the other; `lengths` says how many each has.

        Errors: `UserError` for an id outside the vocabulary and for a document longer than Megatron's format can say.
        """
        if not len(lengths):
            return
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            outside = int(tokens.max()) if int(tokens.min()) >= 0 else int(tokens.min())
            raise UserError(
                f"token {outside} is outside the vocabulary of {self.vocab_size} that shard {self.prefix} is written "
                "for; prepare with the tokeniser that made it"
            )
        if int(lengths.max()) > MOST_TOKENS:
            raise UserError(
                f"a document of {int(lengths.max()):,} tokens is longer than the {MOST_TOKENS:,} that shard "
                f"{self.prefix} can say; cut it into several"
            )
        packed = np.ascontiguousarray(tokens, self.dtype).data
        self._bin.write(packed)
        self._hash.update(packed)
        self._lengths.frombytes(np.ascontiguousarray(lengths, np.int32).tobytes())
        self.num_tokens += len(tokens)

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._bin.close()
            self._bin_path.unlink(missing_ok=True)
            self._idx_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the index and give the shard its name. Nothing can be added any more."""
        if self.sha256:
            return
        self._bin.close()
        index = write_index(self._idx_path, self.dtype, np.frombuffer(self._lengths, np.int32))
        self.sha256 = hashlib.sha256(self._hash.digest() + bytes.fromhex(index)).hexdigest()
        give_name(self._bin_path, with_suffix(self.prefix, ".bin"))
        give_name(self._idx_path, with_suffix(self.prefix, ".idx"))


class Shard:
    """A memory-mapped shard: `tokens` [num_tokens] and `lengths` [num_documents]; the system reads what is looked at.

    Errors: `UserError` where a file is missing, where `.idx` is no index, and where the two do not belong together.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin_path, idx_path = (with_suffix(prefix, suffix) for suffix in (".bin", ".idx"))
        for path in (bin_path, idx_path):
            if not path.exists():
                raise UserError(f"shard file {path} does not exist; {AGAIN}")
        size = idx_path.stat().st_size
        with open(idx_path, "rb") as stream:
            header = stream.read(HEADER.size)
        if len(header) < HEADER.size or header[:9] != MAGIC:
            raise UserError(f"{idx_path} is not a Megatron index; {AGAIN}")
        _, version, code, sequences, boundaries = HEADER.unpack(header)
        if version != VERSION or code not in DTYPES:
            raise UserError(f"{idx_path} has version {version} and dtype code {code}; this reads version {VERSION}")
        expected = HEADER.size + sequences * (4 + 8) + boundaries * 8
        if size != expected:
            raise UserError(f"{idx_path} has {size} bytes where its header says {expected}; {AGAIN}")
        self.dtype = np.dtype(DTYPES[code])
        index = np.memmap(idx_path, np.uint8, "r").view(np.ndarray)
        cuts = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * boundaries])
        lengths, offsets, documents = (index[a:b] for a, b in itertools.pairwise(cuts))
        self.lengths: NDArray[np.int32] = lengths.view(np.int32)
        self._check_bin(bin_path, offsets.view(np.int64))
        if boundaries != sequences + 1:  # Megatron's own: a document may have several sequences
            starts = documents.view(np.int64)[:-1]
            self.lengths = np.add.reduceat(self.lengths, starts[starts < sequences], dtype=np.int32)
        self.tokens: NDArray[np.generic] = np.memmap(bin_path, self.dtype, "r").view(np.ndarray)

    def _check_bin(self, path: Path, offsets: Ints) -> None:
        """Check that `.bin` ends where its index says: the last entry tells, so the whole index need not be read."""
        ends = int(offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(offsets) else 0
        size = path.stat().st_size
        if size != ends:
            raise UserError(
                f"{path} has {size} bytes where its index says {ends}: it is truncated or belongs to another index; "
                + AGAIN
            )
        if not size:
            raise UserError(f"shard {self.prefix} holds no tokens; {AGAIN}")
        self.num_tokens = size // self.dtype.itemsize


class Shards:
    """Several shards as one stream of tokens, in the order given.

    Errors: `UserError` as `Shard`, and where there is none or they differ in their type.
    """

    def __init__(self, prefixes: Sequence[Path]) -> None:
        if not prefixes:
            raise UserError(f"there is no shard to read; {AGAIN}")
        if len(prefixes) > MANY_SHARDS:
            _allow_open_files()
        self.shards = [Shard(prefix) for prefix in prefixes]
        self.dtype = self.shards[0].dtype
        for shard in self.shards:
            if shard.dtype != self.dtype:
                raise UserError(
                    f"shard {shard.prefix} holds {shard.dtype} and {self.shards[0].prefix} {self.dtype}: they were "
                    "made with different tokenisers; prepare them with one"
                )
        self.ends: Ints = np.cumsum([shard.num_tokens for shard in self.shards], dtype=np.int64)
        self.num_tokens = int(self.ends[-1])

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document [num_documents]; of one shard a view of its file, of several a copy."""
        parts = [shard.lengths for shard in self.shards]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """The tokens from `start` to `stop` or to the end; a view of the file where one shard holds them all."""
        parts = [self.shards[home].tokens[place] for home, place in self.spans(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def spans(self, start: int, stop: int | None = None) -> Iterator[tuple[int, slice]]:
        """Where the tokens from `start` to `stop` or to the end lie: the number of each shard, and its tokens there."""
        stop = self.num_tokens if stop is None else min(stop, self.num_tokens)
        for home in range(int(np.searchsorted(self.ends, start, side="right")), len(self.shards)):
            begin = self._begin(home)
            if begin >= stop:
                break
            yield home, slice(max(start - begin, 0), min(stop - begin, self.shards[home].num_tokens))

    def _begin(self, home: int) -> int:
        """Where a shard begins in the stream."""
        return int(self.ends[home]) - self.shards[home].num_tokens

    def gather(self, starts: Ints, length: int, dtype: "type[np.generic] | None" = np.int64) -> NDArray[Any]:
        """The `length` tokens from each start on, across the ends of shards: [len(starts), length].

        They are of type `dtype`; with None they keep the type of the shards, which is a quarter of the bytes to move
        to a device that widens them there. Errors: `UserError` for a start with fewer tokens behind it.
        """
        if len(starts) and not 0 <= int(starts.min()) <= int(starts.max()) <= self.num_tokens - length:
            raise UserError(
                f"{length} tokens from {int(starts.max()):,} on (or {int(starts.min()):,}) are not all among the "
                f"{self.num_tokens:,} of {self.shards[0].prefix.parent}; the samples belong to other data"
            )
        result: NDArray[Any] = np.empty((len(starts), length), dtype or self.dtype)
        homes = np.searchsorted(self.ends, starts, side="right")
        for row, (start, home) in enumerate(zip(starts.tolist(), homes.tolist(), strict=True)):
            shard = self.shards[home]
            offset = start - self._begin(home)
            if offset + length <= shard.num_tokens:
                result[row] = shard.tokens[offset : offset + length]
            else:
                result[row] = self.read(start, start + length)
        return result


def _allow_open_files() -> None:
    """Raise the limit on open files, often 1,024, as far as the system lets us: every mapped file counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
