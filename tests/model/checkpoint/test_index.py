"""The index of a checkpoint: what a rank has to open of what thousands have written."""

from pathlib import Path

import pytest

from model.checkpoint.format import facts, write_manifest
from model.checkpoint.index import FILE, Fragment, index_of, index_text
from model.checkpoint.read import Reader
from model.parallel import Slice

RANKS, TENSOR = 2240, 8
COUNTS = {"optimizer_step": 1, "global_steps": 1, "global_samples": 1, "skipped_steps": 0, "loss_scaler": {}}
SHARE = 1000  # elements of a parameter's part that a data rank holds


def fragment(rank: int, data: int) -> Fragment:
    """What rank number `rank` holds of one parameter, which is cut in eight and dealt out to `data` ranks."""
    place = rank // TENSOR * SHARE
    return Fragment("weight", place, SHARE, 0, (data * SHARE,), Slice(0, TENSOR, rank % TENSOR))


def written(path: Path) -> Reader:
    data, folder = RANKS // TENSOR, path / "step-00000001"
    folder.mkdir()
    fragments = {f"rank-{rank:05d}.safetensors": [(0, fragment(rank, data))] for rank in range(RANKS)}
    (folder / FILE).write_text(index_text(fragments))
    vouched = {name: {"bytes": 0, "sha256": ""} for name in fragments}
    content = {"step": 1, "tie": {}, "state": {}, "engine": COUNTS, "index": facts(folder / FILE), "files": vouched}
    write_manifest(folder, content)
    return Reader(folder)


def test_a_rank_of_many_needs_the_file_that_it_has_written_and_no_other(tmp_path: Path) -> None:
    reader, data = written(tmp_path), RANKS // TENSOR
    for rank in (0, 1, 1000, RANKS - 1):
        assert reader.files([fragment(rank, data)]) == {f"rank-{rank:05d}.safetensors"}
    half = Fragment("weight", 500, 1000, 0, (data * SHARE,), Slice(0, TENSOR, 0))
    assert reader.files([half]) == {"rank-00000.safetensors", "rank-00008.safetensors"}
    # Another tensor degree puts the whole together, of this parameter alone.
    whole = Fragment("weight", 0, 10, 0, (TENSOR * data * SHARE,), None)
    assert len(reader.files([whole])) == RANKS
    assert reader.files([Fragment("other", 0, 1, 0, (1,), None)]) == set()


def test_an_index_comes_back_as_it_was_written() -> None:
    parts = [Fragment("a", 0, 6, 0, (2, 3), None), Fragment("b", 2, 4, 6, (3, 2), Slice(1, 2, 0))]
    index = index_of(index_text({"x": [(0, parts[0]), (3, parts[1])], "y": [(1, parts[0])]}).encode())
    assert [(place.file, place.flat) for place in index.places("a")] == [("x", 0), ("y", 1)]
    assert [place.fragment for place in index.places("b")] == [parts[1]] and index.places("c") == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": []}', '{"files": [], "parameters": {"a": [[[1], null, [[0, 0, 0, 1, 0]]]]}}']
)
def test_what_is_no_index(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        index_of(text.encode())
