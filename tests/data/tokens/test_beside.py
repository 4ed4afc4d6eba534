from pathlib import Path

import numpy as np
import pytest

from data.samples.sampling import BlendedStream, TokenStream
from data.tokens.beside import Beside
from data.tokens.shards import Shards
from support.errors import UserError
from tests.data.tokens.test_shards import write


def shards(folder: Path, *sizes: int) -> Shards:
    """Shards of one document each; the token at place n of the stream is n."""
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return Shards([write(folder / f"s{n}", [part.tolist()]).prefix for n, part in enumerate(places)])


def with_rows(folder: Path, *sizes: int) -> tuple[Shards, Beside]:
    """Beside the token at place n lie 10 n and 10 n + 1."""
    opened = shards(folder, *sizes)
    for shard in opened.shards:
        rows = np.stack([shard.tokens * 10, shard.tokens * 10 + 1], 1).astype(np.float32)
        Path(f"{shard.prefix}.near").write_bytes(rows.tobytes())
    return opened, Beside(opened, ".near", np.float32, columns=2)


def test_rows_lie_beside_the_tokens_of_every_shard(tmp_path: Path) -> None:
    tokens, beside = with_rows(tmp_path, 3, 1, 4)
    assert beside.read(2, 6).tolist() == [[20, 21], [30, 31], [40, 41], [50, 51]]
    assert beside.read().shape == (8, 2) and beside.read(8).shape == (0, 2)
    assert beside.read(4).tolist() == [[place * 10, place * 10 + 1] for place in tokens.read(4).tolist()]


def test_a_blend_reads_what_lies_beside_its_samples(tmp_path: Path) -> None:
    both = [with_rows(tmp_path / name, 30, 50) for name in ("a", "b") if (tmp_path / name).mkdir() is None]
    blend = BlendedStream([TokenStream(tokens, 4, 7, n) for n, (tokens, _) in enumerate(both)], [2, 1])
    tokens, rows = blend.batch(5, 40), blend.beside(5, 40, [beside for _, beside in both])
    assert rows.shape == (40, 5, 2)
    assert (rows[..., 0] == tokens * 10).all() and (rows[..., 1] == tokens * 10 + 1).all()


def test_what_is_missing_or_too_short_is_refused(tmp_path: Path) -> None:
    opened = shards(tmp_path, 3, 2)
    Path(tmp_path / "s0.near").write_bytes(bytes(3))
    with pytest.raises(UserError, match=r"s1.near does not exist; remove its folder and prepare the data again"):
        Beside(opened, ".near", np.uint8)
    Path(tmp_path / "s1.near").write_bytes(bytes(3))
    with pytest.raises(UserError, match=r"s1.near has 3 bytes where its shard needs 2"):
        Beside(opened, ".near", np.uint8)
