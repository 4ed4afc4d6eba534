"""What the supervisor makes of how ranks end; the ranks are played, by processes that say who they are."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import local
from launch.care import Care
from launch.start import start
from recipes.registry import load
from run import events
from run.request import Request
from support.errors import CRASHED, STOPPED, WRONG_INPUT, CrashedError, UserError
from tests.commands.running import small, write_corpus

RANK = """
import os, signal, sys, time
from pathlib import Path
from training import presence
path = Path(sys.argv[1])
presence.enter(path, {number})
time.sleep(0.3)  # no rank of a run ends sooner, and the supervisor looks ten times a second
{does}
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {rank!r}, sys.argv[1]]) % 256)"


def play(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    does: str,
    care: Care | None = None,
    ranks: int | None = None,
) -> Path:
    """Start a run with a launcher that has one rank, which does this, after a step that it did before."""
    launches = tmp_path / "launches"

    def command(module: str, arguments: list[str], world: int, *more: Any) -> list[str]:
        with open(launches, "a") as stream:
            stream.write("x" if ranks is None else str(world))
        return [sys.executable, "-c", LAUNCHER.format(rank=RANK.format(number=number, does=does)), arguments[1]]

    monkeypatch.setattr(local, "deepspeed_command", command)
    monkeypatch.setattr("launch.supervise.FIRST_WAIT", 0.01)
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    _, *settings = small(write_corpus(tmp_path / "corpus.jsonl"))
    start(load("tiny"), Request(settings=tuple(settings), run_dir=str(tmp_path / "run")), ranks, None, care or Care())
    return tmp_path / "run"


def test_a_rank_that_refuses_alone_ends_the_run_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        play(monkeypatch, tmp_path, 1, "print('error: the data are not here; copy them'); os._exit(2)")
    assert ended.value.code == WRONG_INPUT
    noted = json.loads((tmp_path / "run" / "status.json").read_text())
    assert noted == {"status": WRONG_INPUT, "reason": "the data are not here; copy them"}
    assert "rank 1: error: the data are not here; copy them" in capfd.readouterr().out
    assert (tmp_path / "launches").read_text() == "x"


def test_a_port_that_is_taken_meanwhile_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CrashedError, match="rank 0 of 2 ended with status 1: the ranks cannot meet: taken; go on with"):
        play(monkeypatch, tmp_path, 0, "print('error: the ranks cannot meet: taken; wait'); os._exit(1)")
    assert (tmp_path / "launches").read_text() == "xxx"


def test_a_rank_that_was_asked_by_itself_ends_the_run_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does = f'(path / \'status.json\').write_text(\'{{"status": {STOPPED}, "reason": "asked"}}\'); os._exit({STOPPED})'
    with pytest.raises(SystemExit) as ended:
        play(monkeypatch, tmp_path, 0, does)
    assert ended.value.code == STOPPED and (tmp_path / "launches").read_text() == "x"
    assert not any(line["event"] == "fault" for line in events.read(tmp_path / "run"))


STEP = "(path / 'metrics.jsonl').write_text('{\"step\": 1, \"loss\": 1.0}'); "
CRASH = STEP + "os._exit(5)"


def test_what_a_broken_rank_printed_is_shown_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told; touch x"  # no shell reads it
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    care = Care(restarts=2, notify=f"{sys.executable} -c \"{code}\" '{told}'")
    with pytest.raises(UserError, match=r"gave up after 3 failures.*rank 1 of 2 was killed by SIGSEGV") as ended:
        play(monkeypatch, tmp_path, 1, STEP + "print('a word', flush=True); os.kill(os.getpid(), 11)", care)
    assert ended.value.status == 77 and len(ended.value.lines) == 4
    assert (tmp_path / "launches").read_text() == "xxx"
    assert capfd.readouterr().out.count("rank 1: a word") == 3
    kinds = [json.loads(line)["event"] for line in told.read_text().splitlines()]
    assert kinds == ["fault", "restart"] * 2 + ["fault", "end"]
    assert json.loads((tmp_path / "run" / "start.json").read_text())["resumed"] is True


def test_an_end_is_told_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set back after the start had begun."""
    monkeypatch.setattr("launch.start.time", SimpleNamespace(time=lambda: 4e9))
    care = Care(restarts=0, notify=f"tee {tmp_path / 'told'}")
    with pytest.raises(CrashedError):
        play(monkeypatch, tmp_path, 1, CRASH, care)
    assert json.loads((tmp_path / "told").read_text())["event"] == "end"


def test_without_restarts_a_crash_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CrashedError, match="rank 1 of 2 ended with status 5; go on with --resume") as ended:
        play(monkeypatch, tmp_path, 1, STEP + "os._exit(5)", Care(restarts=0))
    assert ended.value.status == CRASHED and (tmp_path / "launches").read_text() == "x"


def test_a_machine_that_loses_gpus_goes_on_with_the_most_ranks_that_divide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A batch of 8 goes on 4, 2 and 1 of them, not on 3; boards that are back are taken again."""
    left = iter((3, 1, 4))
    monkeypatch.setattr(local, "gpus_left", lambda: next(left))
    with pytest.raises(UserError, match="gave up after 4 failures"):
        play(monkeypatch, tmp_path, 1, CRASH, ranks=4)
    assert (tmp_path / "launches").read_text() == "4214"
    lines = [line["line"] for line in events.read(tmp_path / "run") if line["event"] == "said"]
    assert [line for line in lines if "GPUs" in line] == [
        "3 of 4 GPUs are left here: the run goes on with 2 ranks, micro-batch 2 x accumulation 2",
        "1 of 4 GPUs are left here: the run goes on with 1 ranks, micro-batch 2 x accumulation 4",
        "4 of 4 GPUs are left here: the run goes on with 4 ranks, micro-batch 2 x accumulation 1",
    ]
    assert json.loads((tmp_path / "run" / "start.json").read_text())["world_size"] == 4
    assert "the run goes on with 2 ranks" in capfd.readouterr().out


def test_a_machine_without_the_gpus_that_a_run_needs_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus_left", lambda: 0)
    with pytest.raises(UserError, match=r"0 of 4 GPUs are left here.*go on with --resume") as ended:
        play(monkeypatch, tmp_path, 1, CRASH, ranks=4)
    assert ended.value.status == 77 and (tmp_path / "launches").read_text() == "4"


@pytest.mark.parametrize(
    ("care", "words"),
    [
        (Care(restarts=-1), "--restarts is -1"),
        (Care(hang_seconds=0.0), "--hang-seconds is 0"),
        (Care(notify=""), "--notify has no command line"),
        (Care(notify="say 'it"), "or one with a quote left open"),
    ],
)
def test_wrong_care_is_refused(care: Care, words: str) -> None:
    with pytest.raises(UserError, match=words):
        care.check()


def test_a_listener_that_fails_is_said_and_no_more(tmp_path: Path) -> None:
    Care(notify="false").tell(tmp_path, "fault")
    Care(notify=str(tmp_path / "nothing")).tell(tmp_path, "fault")
    first, second = (line["line"] for line in events.read(tmp_path))
    assert first == "--notify false: it ended with status 1" and "No such file" in second
