import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from data.tokens.shards import Shard, Shards, ShardWriter, digest, token_dtype


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> Shard:
    with ShardWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add(np.array(document, np.int64), np.array([len(document)]))
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
    with (
        pytest.raises(ValueError, match="token 70000 is outside the vocabulary of 100"),
        ShardWriter(tmp_path / "a", 100) as writer,
    ):
        writer.add(np.array([70000]), np.array([1]))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", 100) as writer:
        writer.add(np.array([1]), np.array([1]))
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


def test_many_documents_at_once_are_the_same_as_one_by_one(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [4], [5, 6]]
    write(tmp_path / "a", documents)
    with ShardWriter(tmp_path / "b", 1000) as writer:
        writer.add(np.array([1, 2, 3, 4, 5, 6], np.uint32), np.array([3, 0, 1, 2]))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert writer.sha256 == digest(tmp_path / "a")


def test_an_index_of_more_documents_than_a_block_counts_on(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 5, 200_000)
    with ShardWriter(tmp_path / "a", 10) as writer:
        writer.add(np.zeros(lengths.sum(), np.int64), lengths)
    raw = (tmp_path / "a.idx").read_bytes()[34:]
    assert (np.frombuffer(raw, np.int32, 200_000) == lengths).all()
    assert (np.frombuffer(raw, np.int64, 200_000, 800_000) == 2 * (lengths.cumsum() - lengths)).all()
    assert (np.frombuffer(raw, np.int64, -1, 2_400_000) == np.arange(200_001)).all()


def test_several_shards_are_one_stream(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3], [4]])
    write(tmp_path / "b", [[5, 6]])
    write(tmp_path / "c", [[7, 8, 9]])
    shards = Shards([tmp_path / name for name in "abc"])
    assert shards.num_tokens == 9 and shards.lengths.tolist() == [3, 1, 2, 3]
    assert shards.read().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert shards.read(3, 7).tolist() == [4, 5, 6, 7] and shards.read(8, 99).tolist() == [9]
    found = shards.gather(np.array([0, 2, 5, 4]), 4)
    assert found.tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [6, 7, 8, 9], [5, 6, 7, 8]] and found.dtype == np.int64
    assert shards.gather(np.array([3]), 4, dtype=None).dtype == np.uint16
    for start in (-1, 6):
        with pytest.raises(ValueError, match="the samples belong to other data"):
            shards.gather(np.array([start]), 4)


def test_shards_of_two_vocabularies_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1]])
    write(tmp_path / "b", [[1]], 70_000)
    with pytest.raises(ValueError, match=r"b holds int32 and .*a uint16"):
        Shards([tmp_path / "a", tmp_path / "b"])


NO_WHEEL = pytest.mark.skipif(sys.version_info >= (3, 14), reason="megatron-core has no wheel for this Python")


@NO_WHEEL
@pytest.mark.parametrize("vocab", [1000, 70_000])
def test_megatron_core_reads_our_shards_and_we_read_its(vocab: int, tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    documents = [[1, 2, 3], [vocab - 1], [5, 6]]
    write(tmp_path / "ours", documents, vocab)
    theirs = IndexedDataset(str(tmp_path / "ours"), mmap=True)
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab))
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@NO_WHEEL
def test_a_document_of_several_sequences_is_one_document(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    builder.add_document(torch.arange(5), [2, 3])
    builder.add_document(torch.arange(4), [4])
    builder.finalize(str(tmp_path / "a.idx"))
    shard = Shard(tmp_path / "a")
    assert shard.lengths.tolist() == [5, 4] and shard.num_tokens == 9
