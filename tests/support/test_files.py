import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from support import files
from support.errors import CRASHED, CrashedError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1})
    with files.whole_file(path, "w") as stream:
        stream.write("café")
        stream.flush()
        assert path.read_text() == '{\n  "b": 1\n}\n'
        (scratch,) = (name for name in names(tmp_path) if name != "a.json")
        assert scratch.startswith(".a.json.") and scratch.endswith(f"-{os.getpid()}.partial")
    assert path.read_bytes() == "café".encode() and names(tmp_path) == ["a.json"]
    files.write(path, b"\x00")
    assert path.read_bytes() == b"\x00"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), files.whole_file(tmp_path / "a") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_what_gets_its_name_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the calls: content, then name, then the list of names that holds it."""
    calls: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: calls.append(f"sync {path.name.split('.')[0]}"))
    replace = os.replace

    def rename(scratch: Path, path: Path) -> None:
        calls.append(f"rename {path.name}")
        replace(scratch, path)

    monkeypatch.setattr(os, "replace", rename)
    with files.whole_folder(tmp_path / "new") as scratch:
        (scratch / "one.txt").write_text("1")
    assert calls == ["sync one", "sync new", "rename new", f"sync {tmp_path.name}"]


def test_a_folder_takes_the_place_of_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with files.whole_folder(tmp_path / "folder") as scratch:
            assert scratch == tmp_path / "folder.partial" and names(scratch) == []
            (scratch / name).write_text(name)
    assert names(tmp_path / "folder") == ["two"]
    (tmp_path / "folder.partial").mkdir()  # as a killed process leaves it
    (tmp_path / "folder.partial" / "left").write_text("left")
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "folder") as scratch:
        assert names(scratch) == []
        raise ZeroDivisionError
    assert names(tmp_path / "folder") == ["two"] and names(tmp_path) == ["folder"]


def hold(path: Path, taken: "multiprocessing.synchronize.Event") -> None:
    with files.locked(path):
        taken.set()
        multiprocessing.Event().wait()  # for ever


def test_a_lock_keeps_others_out_until_its_holder_is_killed(tmp_path: Path) -> None:
    path, context = tmp_path / "new" / ".lock", multiprocessing.get_context("fork")
    taken = context.Event()
    holder = context.Process(target=hold, args=(path, taken))
    holder.start()
    taken.wait()
    with pytest.raises(ValueError, match="another process holds it"), files.locked(path, "another process holds it"):
        pass
    holder.kill()
    with files.locked(path):  # it waits until the system has freed it
        pass
    holder.join()


def test_who_asks_whether_a_lock_is_locked_is_in_nobody_s_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    assert not files.is_locked(path) and not path.exists()
    with files.locked(path):
        assert files.is_locked(path)
    assert not files.is_locked(path)
    asking = open(path)  # noqa: SIM115
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: asking.close())
    with files.locked(path, "another process holds it"):  # it tries again: who asks is gone in a moment
        assert asking.closed


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), Exception("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_one_line_and_no_wrong_input(error: Exception, tmp_path: Path) -> None:
    words = rf"no room left to write {tmp_path}: No space left on device; free some"
    with pytest.raises(files.NoRoomError, match=words) as caught, files.enough_room(tmp_path):
        raise error
    assert caught.value.status == CRASHED


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(CrashedError, match=r"^mine"), files.enough_room(tmp_path):
        raise CrashedError("mine: No space left on device (os error 28)")
    with pytest.raises(PermissionError), files.enough_room(tmp_path):
        raise PermissionError(errno.EACCES, "no")
