"""Preparing that stops: on bad input, on a full disk, by a signal. The same command goes on with what is finished."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.corpus import sources
from data.tokens import prepare
from data.tokens.prepare import Options
from data.tokens.shards import ShardWriter
from tests.data.tokens.preparing import LINES, contents, left_in


def test_bad_input_stops_or_is_skipped_and_what_was_finished_is_kept(
    files: Path, tmp_path: Path, tokeniser: str
) -> None:
    with open(files / "2.jsonl", "a") as stream:
        stream.write("not json\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"2\.jsonl line 101 is not JSON"):
        prepare.prepare(str(files), tokeniser, 300, out, options=Options(workers=1))
    (unfinished,) = left_in(out)
    assert unfinished.endswith(".partial")
    before = (out / unfinished / "train-00000-00.bin").stat().st_mtime_ns
    said: list[str] = []
    folder = prepare.prepare(str(files), tokeniser, 300, out, said.append, Options(workers=1, skip=True))
    assert any("going on: 2 of 4 tasks are finished already" in line for line in said)
    assert any("skipped 1 times, not JSON; the first: " in line and "line 101" in line for line in said)
    assert prepare.manifest(folder)["skipped"] == {"not JSON": 1}
    assert (folder / "train-00000-00.bin").stat().st_mtime_ns == before
    assert left_in(out) == [folder.name]
    assert not [name for name in left_in(folder) if "partial" in name or name.startswith("task")]


def test_data_that_lacks_what_was_skipped_is_not_taken_where_nothing_is_to_be(
    files: Path, tmp_path: Path, tokeniser: str
) -> None:
    out, said = tmp_path / "out", list[str]()
    bad = files / "2.jsonl"
    bad.write_text(bad.read_text() + "not json\n")
    skip, stop, either = (Options(workers=1, skip=skip) for skip in (True, False, None))
    lacking = prepare.prepare(str(files), tokeniser, 300, out, options=skip)
    assert prepare.prepare(str(files), tokeniser, 300, out, options=either) == lacking  # a run takes what there is
    with pytest.raises(ValueError, match=r"2\.jsonl line 101 is not JSON"):
        prepare.prepare(str(files), tokeniser, 300, out, options=stop)
    assert prepare.manifest(lacking)["skipped"] == {"not JSON": 1}
    bad.write_text("".join(bad.read_text().splitlines(keepends=True)[:-1]))
    whole = prepare.prepare(str(files), tokeniser, 300, out, options=skip)
    assert prepare.prepare(str(files), tokeniser, 300, out, said.append, stop) == whole and not said
    assert prepare.manifest(whole)["skipped"] == {}


def test_a_task_that_skipped_is_done_again_where_nothing_is_to_be(
    files: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a disk that fails for a while: no file tells that there is more in it now."""
    read = sources.FilePiece.documents

    def lossy(piece: sources.FilePiece, problems: sources.Problems) -> Iterator[sources.Document]:
        if piece.path.name == "1.jsonl":
            problems.report("unreadable file", "gone for now")
            return
        yield from read(piece, problems)

    def full(*_: Any) -> None:
        raise KeyboardInterrupt

    out, said = tmp_path / "out", list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(sources.FilePiece, "documents", lossy)
        patched.setattr(prepare._Preparation, "_put_together", full)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(str(files), tokeniser, 300, out, options=Options(workers=1, skip=True))
    folder = prepare.prepare(str(files), tokeniser, 300, out, said.append, Options(workers=1))
    assert any("going on: 3 of 4 tasks" in line for line in said)
    assert sum(prepare.manifest(folder)[split]["documents"] for split in sources.SPLITS) == len(LINES)


def test_an_error_in_a_worker_ends_the_others_and_is_one_line(files: Path, tmp_path: Path, tokeniser: str) -> None:
    (files / "1.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match=r"1\.jsonl line 1 is not JSON"):
        prepare.prepare(str(files), tokeniser, 300, tmp_path / "out", options=Options(workers=2))


def test_a_corpus_that_breaks_at_once_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    with open(corpus, "a") as stream:
        stream.write("not json\n")
    with pytest.raises(ValueError, match="line 401 is not JSON"):
        prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    assert left_in(tmp_path / "out") == []


SLOW = """
import sys, time
from pathlib import Path
from data.tokens import prepare, tasks
tasks.piece_bytes = lambda total: 1
encode = tasks._encode
def slowly(batch, parts, job, *rest):
    result = encode(batch, parts, job, *rest)
    if len(list(job.folder.glob("task-*.json"))) == 2:
        print("here", flush=True)
        time.sleep(600)
    return result
tasks._encode = slowly
prepare.prepare(sys.argv[1], sys.argv[2], 300, Path(sys.argv[3]), options=prepare.Options(workers=1))
"""


def test_a_killed_run_is_gone_on_with(files: Path, tmp_path: Path, tokeniser: str) -> None:
    out = tmp_path / "out"
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", SLOW, str(files), tokeniser, str(out)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    (scratch,) = out.glob("*.partial")
    assert list(scratch.glob("*.bin.*partial"))  # half a shard
    kept = {path.name: path.stat().st_mtime_ns for path in scratch.glob("train-*.bin")}
    assert len(kept) == 2
    said: list[str] = []
    folder = prepare.prepare(str(files), tokeniser, 300, out, said.append, Options(workers=1))
    assert any("going on: 2 of 4 tasks" in line for line in said)
    assert all((folder / name).stat().st_mtime_ns == when for name, when in kept.items())
    fresh = prepare.prepare(str(files), tokeniser, 300, tmp_path / "fresh", options=Options(workers=1))
    assert contents(folder) == contents(fresh) and left_in(out) == [folder.name]


@pytest.mark.parametrize("target", ["manifest.json", "replace"])
def test_a_run_stopped_while_it_puts_all_together_keeps_its_shards(
    files: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    write, rename = prepare.write_json, os.replace

    def stop_writing(path: Path, value: Any) -> None:
        if path.name == target:
            raise KeyboardInterrupt
        write(path, value)

    def stop_renaming(source: Path, place: Path) -> None:
        if target == "replace" and Path(place).parent == out:
            raise KeyboardInterrupt
        rename(source, place)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_json", stop_writing)
        patched.setattr(os, "replace", stop_renaming)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(str(files), tokeniser, 300, out, options=Options(workers=1))
    said: list[str] = []
    folder = prepare.prepare(str(files), tokeniser, 300, out, said.append, Options(workers=1))
    assert "going on: 4 of 4 tasks are finished already" in said
    assert left_in(out) == [folder.name]
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".bin", ".idx", ".json"}
    assert not list(folder.glob("task-*"))


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    files: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = ShardWriter.finish

    def full(writer: ShardWriter) -> None:
        if writer.prefix.name.startswith("train-00002"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(writer)

    monkeypatch.setattr(ShardWriter, "finish", full)
    with pytest.raises(ValueError, match=r"no room left to write .*: No space left on device; free some"):
        prepare.prepare(str(files), tokeniser, 300, tmp_path / "out", options=Options(workers=1))
    (scratch,) = (tmp_path / "out").glob("*.partial")
    assert not [name for name in left_in(scratch) if "00002" in name or "partial" in name]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more into a file: as a full disk, for whoever writes, in Rust too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1000, 3])
def test_no_room_for_the_tokeniser_is_one_line(corpus: Path, tmp_path: Path, size: int) -> None:
    words = r"no room left to write .*partial: File too large; free some"
    with files_of_at_most(size), pytest.raises(ValueError, match=words):
        prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out", options=Options(workers=1))
    with files_of_at_most(size), pytest.raises(ValueError, match="no room left to write"):
        prepare.shared_tokeniser([str(corpus), str(corpus)], "bpe:300", tmp_path / "out")


def test_no_room_for_the_manifest_is_one_line(
    corpus: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = prepare.write_json

    def full(path: Path, value: Any) -> None:
        with files_of_at_most(10 if path.name == "manifest.json" else 1 << 30):
            write(path, value)

    monkeypatch.setattr(prepare, "write_json", full)
    with pytest.raises(ValueError, match=r"no room left to write .*partial: File too large; free some"):
        prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "out", options=Options(workers=1))


def test_a_file_that_was_mended_is_done_again_and_the_others_are_not(
    files: Path, tmp_path: Path, tokeniser: str
) -> None:
    (files / "3.jsonl").write_text("not json\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="is not JSON"):
        prepare.prepare(str(files), tokeniser, 300, out, options=Options(workers=1))
    (files / "3.jsonl").write_text('{"text": "mended"}\n' * 100)
    said: list[str] = []
    prepare.prepare(str(files), tokeniser, 300, out, said.append, Options(workers=1))
    assert any("going on: 3 of 4 tasks" in line for line in said)
