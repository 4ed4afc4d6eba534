import struct
from pathlib import Path

import numpy as np
import pytest

from data.shards import Shard, ShardWriter, token_dtype


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> Shard:
    with ShardWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return Shard(prefix)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [[1, 2, 3], [4], [5, 6]])
    assert shard.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert shard.lengths.tolist() == [3, 1, 2]
    assert shard.num_tokens == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_the_index_is_megatron_s_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3], [4]])
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<4H", 1, 2, 3, 4)
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 2, 3)  # version, uint16, sequences, document boundaries
        + struct.pack("<2i", 3, 1)  # lengths in tokens
        + struct.pack("<2q", 0, 6)  # offsets in bytes
        + struct.pack("<3q", 0, 1, 2)  # documents
    )


@pytest.mark.parametrize(("vocab", "dtype"), [(4096, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_the_type_holds_the_vocabulary(vocab: int, dtype: type, tmp_path: Path) -> None:
    assert token_dtype(vocab) is dtype
    assert write(tmp_path / "a", [[vocab - 1]], vocab).tokens.tolist() == [vocab - 1]


def test_a_token_outside_the_vocabulary_s_type_is_an_error_not_a_wrap(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), ShardWriter(tmp_path / "a", 100) as writer:
        writer.add([70000])


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", 100) as writer:
        writer.add([1])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_bin_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3]])
    (tmp_path / "a.bin").write_bytes(b"\x01\x00")
    with pytest.raises(ValueError, match=r"a\.bin has 2 bytes where its index says 6"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a Megatron index"),
        (b"NOTMAGIC!" + bytes(50), "not a Megatron index"),
        (struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 2, 8, 0, 1), "has version 2"),
        (struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 10, 11), "bytes where its header says"),
    ],
)
def test_a_wrong_index_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3]])
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Shard(tmp_path / "a")


def test_a_missing_file_and_an_empty_shard_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.bin does not exist"):
        Shard(tmp_path / "a")
    with pytest.raises(ValueError, match="holds no tokens"):
        write(tmp_path / "b", [])
