"""Ranks of a command: started here, their rows in one file, and an end of one status and one line."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from launch.command import world_of
from tests.commands.running import Command, fail, succeed
from tests.commands.running import run as run_command
from tests.inference.conftest import run

__all__ = ["run"]  # a fixture


def flags(run: Path, *more: str) -> list[str]:
    """Of forty prompts, whose texts take a twentieth of a second each to score."""
    prompts, slow, out = (run.parent / name for name in ("prompts.txt", "slow.py", "out.jsonl"))
    prompts.write_text("".join(f"the cat {number}\n" for number in range(40)))
    slow.write_text("import time\n\ndef score(prompt, text):\n    time.sleep(0.05)\n    return len(text)\n")
    where = ["--run", str(run), "--prompts", str(prompts), "--out", str(out)]
    how = ["--max-new-tokens", "5", "--best-of", "2", "--rank-by", f"{slow}:score"]
    return ["commands", "generate", *where, *how, *more]


def test_ranks_share_the_prompts_and_another_number_goes_on(run: Path, tmp_path: Path) -> None:
    """A rank is killed in the midst: one line, and what it has not sent is written by the next call alone."""
    out = tmp_path / "out.jsonl"
    command = Command(tmp_path, *flags(run, "--ranks", "2", "--json"))
    command.wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3)
    started = psutil.Process(command.pid).children(recursive=True)
    ranks = [process for process in started if not process.children()]
    assert len(ranks) == 2
    os.kill(ranks[-1].pid, signal.SIGKILL)
    done = command.finish()
    there = out.read_bytes().count(b"\n")
    assert 3 <= there < 40 and done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: a rank was killed by SIGKILL; give the same command again, what is finished is kept"]
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started)
    values = json.loads(succeed(tmp_path, *flags(run, "--json")))
    assert values["kept"] == there and values["written"] == 40 - there
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted(row["line"] for row in rows) == list(range(1, 41))
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)


def test_what_a_rank_refuses_is_one_line_and_its_status(run: Path, tmp_path: Path) -> None:
    wrong = fail(tmp_path, *flags(run, "--ranks", "3", "--tensor", "2"))
    assert "are 2 ranks a copy of the model, which do not divide 3; give --ranks 2 or a multiple" in wrong
    words = flags(run, "--ranks", "2")
    (tmp_path / "slow.py").write_text("def score(prompt, text):\n    return 1 / (prompt[-2:] != ' 3')\n")
    done = run_command(tmp_path, *words)  # the second copy meets it
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1
    assert errors[0].endswith("slow.py:score raised ZeroDivisionError: division by zero (slow.py, line 2); mend it")


def test_ranks_of_a_hostfile_share_the_prompts(run: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    values = json.loads(succeed(tmp_path, *flags(run, "--hostfile", str(tmp_path / "hosts"), "--json")))
    assert values["written"] == 40 and (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 40


@pytest.mark.parametrize(("ranks", "hosts", "words"), [
    (0, None, "--ranks must be at least 1"), (2, "a slots=1", "--ranks and --hostfile exclude each other"),
    (None, "a slots=x", "write it as: worker-1 slots=8"),
])  # fmt: skip
def test_how_many_ranks_must_be_said_once(ranks: int | None, hosts: str | None, words: str, tmp_path: Path) -> None:
    if hosts:
        (tmp_path / "hosts").write_text(hosts)
    with pytest.raises(ValueError, match=words):
        world_of(ranks, str(tmp_path / "hosts") if hosts else None)
