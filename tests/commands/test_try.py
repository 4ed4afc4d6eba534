"""A search that really trains: interrupted in its first run, and gone on with by the same command."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest

from commands.__main__ import main
from run.metrics import read_steps
from support.errors import STOPPED
from tests.commands.running import Command, fail, small, succeed, write_corpus

STEPS = 20  # of its budget: so many that the signal comes before the last


def _ranks_are_there(command: int) -> bool:
    """The launcher, the process in which it waits, and two ranks."""
    return len(psutil.Process(command).children(recursive=True)) >= 4


def _goes_on(steps: Path, before: str) -> bool:
    """A search that has just begun does not hear signals yet."""
    return steps.exists() and steps.read_text() != before


def test_an_interrupted_search_goes_on_by_the_same_command(tmp_path: Path) -> None:
    settings = [*small(write_corpus(tmp_path / "corpus.jsonl")), "optimizer.lr=3e-3,1e-2"]
    wanted = ["commands", "try", "tiny", *settings, "--max-steps", str(STEPS), "--name", "rate"]
    runs = tmp_path / "runs" / "gpt_tiny"
    wrong = fail(tmp_path, *wanted, "--set", "optimizer.lr=x")
    assert "optimizer.lr=x: --set optimizer.lr=x: 'x' is not a number" in wrong and not runs.exists()
    steps = runs / "rate-001" / "metrics.jsonl"
    for can_save in (False, True):
        searching = Command(tmp_path, *wanted)
        before = steps.read_text() if steps.exists() else ""
        there = partial(_goes_on, steps, before) if can_save else partial(_ranks_are_there, searching.pid)
        searching.wait_until(there)
        os.kill(searching.pid, signal.SIGINT)
        stopped = searching.finish()
        assert stopped.returncode == STOPPED, stopped.stderr
        assert "give the same command again" in stopped.stderr.splitlines()[-1]
    assert stopped.stderr.splitlines()[-1] == "error: stopped at 1 of 2; give the same command again to go on"
    assert len(read_steps(runs / "rate-001" / "metrics.jsonl")) < STEPS and not (runs / "rate-002").exists()
    values = json.loads(succeed(tmp_path, *wanted, "--json"))
    assert [len(read_steps(runs / f"rate-00{number}" / "metrics.jsonl")) for number in (1, 2)] == [STEPS] * 2
    assert {point["state"] for point in values["points"]} == {"finished"}
    first, second = values["points"]
    assert first["validation_loss"] < second["validation_loss"] and first["settings"]["optimizer.lr"] == "1e-2"
    assert (runs / "rate" / "try.png").exists()
    names = [json.loads((runs / f"rate-00{number}" / "run.json").read_text())["name"] for number in (1, 2)]
    assert names == ["rate-1", "rate-2"]


def test_the_same_values_have_the_same_name_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    names = []
    for recipe, settings in (
        ("tiny", ["seed=1,2", "optimizer.lr=1,2"]),
        ("gpt_tiny", ["optimizer.lr=2,1", "seed=1", "seed=2"]),
        ("tiny", ["optimizer.lr=2,1", "seed=1"]),
        ("345m", ["seed=1,2", "optimizer.lr=1,2"]),
    ):
        monkeypatch.setattr("sys.argv", ["stagecraft", "try", recipe, "--set", *settings, "--table"])
        with pytest.raises(SystemExit):
            main()
        found = re.search(r"there is no search in .*/(try-[0-9a-f]{6});", capsys.readouterr().err)
        assert found
        names.append(found[1])
    assert names[0] == names[1] and len(set(names)) == 3
