import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from launch import death


@pytest.mark.parametrize(("code", "how"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("pass", 0)])
def test_how_a_process_ended_is_known_until_its_parent_asks(code: str, how: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"import os, sys\n{code}"])
    descriptor = os.pidfd_open(process.pid)
    select.select([descriptor], [], [])
    assert death.exit_of(process.pid) == how
    process.wait()
    os.close(descriptor)
    assert death.exit_of(process.pid) is None and death.exit_of(os.getpid()) is None


def test_an_end_in_words() -> None:
    assert death.told(-9) == "was killed by SIGKILL"
    assert death.told(-9, out_of_memory=True) == "was killed by SIGKILL: out of memory"
    assert death.told(-11, out_of_memory=True) == "was killed by SIGSEGV"
    assert death.told(1) == "ended with status 1"
    assert death.told(None) == "ended, nobody knows how"


@pytest.mark.parametrize(
    ("cgroup", "file", "content"),
    [
        ("0::/job\n", "job/memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("0::/outside\n", "memory.events", "oom_kill 2\n"),  # in a container
        ("4:memory:/job\n0::/\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_kills_for_memory_are_counted(
    cgroup: str, file: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    monkeypatch.setattr(death, "CGROUPS", tmp_path)
    monkeypatch.setattr(death, "MINE", tmp_path / "cgroup")
    assert death.kills_for_memory() == 2
    (tmp_path / file).unlink()
    assert death.kills_for_memory() == 0
