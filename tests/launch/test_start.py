"""What the launcher does and notes around the ranks; the ranks themselves are played."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import local
from launch.start import start
from model.engine import build
from recipes.registry import ROOT, load
from run import events
from run.request import Request
from support.errors import CRASHED, STOPPED, CrashedError, UserError
from tests.commands.running import small, write_corpus


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A small run in `tmp_path/run`."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    _, *settings = small(write_corpus(tmp_path / "corpus.jsonl"))
    return Request(settings=tuple(settings), run_dir=str(tmp_path / "run"))


def play(monkeypatch: pytest.MonkeyPatch, ranks: str) -> None:
    """Let this code stand for the launcher and its ranks; its argument is the run directory."""

    def command(module: str, arguments: list[str], *more: Any) -> list[str]:
        return [sys.executable, "-c", f"import json, sys\n{ranks}", arguments[1]]

    monkeypatch.setattr(local, "deepspeed_command", command)


def test_a_crash_that_no_rank_notes_is_noted(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, "sys.exit(7)")
    with pytest.raises(CrashedError) as crash:
        start(load("tiny"), request_of, None, None)
    path = tmp_path / "run"
    reason = f"the ranks ended with status 7 before the run did; go on with --resume --run-dir {path}"
    assert str(crash.value) == reason
    assert json.loads((path / "status.json").read_text()) == {"status": CRASHED, "reason": reason}
    began, *phases, fault, ended = events.read(path)
    assert began["event"] == "start" and began["world_size"] == 2 and began["resumed"] is False and began["host"]
    assert [(line["event"], line["phase"]) for line in phases] == [("phase", "data"), ("phase", "imports")]
    assert (fault["event"], fault["rank"], fault["reason"]) == ("fault", None, reason.partition(";")[0])
    assert (ended["event"], ended["status"], ended["reason"]) == ("end", CRASHED, reason)
    times = [line["time"] for line in events.read(path)]
    assert times == sorted(times)
    assert capfd.readouterr().out.startswith(f"starting gpt_tiny in {path}\n")


def test_what_the_ranks_noted_stands(request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, f"json.dump({{'status': {STOPPED}, 'reason': 'asked'}}, open(sys.argv[1] + '/status.json', 'w'))")
    with pytest.raises(SystemExit) as ended:
        start(load("tiny"), request_of, None, None)
    assert ended.value.code == STOPPED
    last = events.read(tmp_path / "run")[-1]
    assert (last["event"], last["status"], last["reason"]) == ("end", STOPPED, "asked")


def test_a_launcher_that_is_missing_is_noted(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "deepspeed_command", lambda *arguments: [str(tmp_path / "nothing")])
    with pytest.raises(FileNotFoundError):
        start(load("tiny"), request_of, None, None)
    assert events.read(tmp_path / "run")[-1]["status"] == CRASHED
    assert "nothing" in json.loads((tmp_path / "run" / "status.json").read_text())["reason"]


def test_what_deepspeed_refuses_writes_nothing(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(ds_config: Any, layout: Any, world_size: int) -> None:
        assert (ds_config["train_batch_size"], layout.pp, world_size) == (8, 1, 2)
        raise UserError("DeepSpeed refuses this JSON")

    monkeypatch.setattr(build, "check_json", refuse)
    with pytest.raises(UserError, match="DeepSpeed refuses this JSON"):
        start(load("tiny"), request_of, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_the_first_line_waits_for_nothing_heavy() -> None:
    code = """
import sys
from launch import local
def stop(*arguments):
    raise SystemExit(f"heavy: {sorted({'torch', 'deepspeed', 'pydantic', 'rich'} & set(sys.modules))}")
local.world_size = stop
sys.argv = ["stagecraft", "pretrain", "tiny", "--run-dir", "somewhere"]
from commands.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("starting gpt_tiny in somewhere\n", "heavy: []\n")
