"""Standard output is for the result."""

import os
import signal
import subprocess
import sys
import tomllib

import pytest

from commands import cli, pretrain
from commands.__main__ import COMMANDS, main
from launch.clusters import begin
from recipes.registry import ROOT
from run.request import Request
from support.errors import CRASHED, STOPPED, WRONG_INPUT, UserError, before_traceback

NOISY = """
import logging, os, subprocess, sys
from commands import cli, pretrain

logger = logging.StreamHandler(sys.stdout)  # as DeepSpeed's logger has it

def job():
    print("a library")
    logger.emit(logging.LogRecord("x", logging.WARNING, "", 0, "a logger", None, None))
    os.write(1, b"a library of C\\n")
    subprocess.run([sys.executable, "-c", "print('a process')"], check=True)
    return {"result": 1}

cli.run_job(job, as_json=True)
print("afterwards")
"""


def test_with_json_nothing_but_the_result_is_on_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '{"result": 1}\nafterwards\n'
    assert sorted(done.stderr.splitlines()) == ["a library", "a library of C", "a logger", "a process"]


def test_an_error_leaves_standard_output_empty_and_open(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        print("so far so good")
        raise UserError("no such thing; give another")

    with pytest.raises(SystemExit) as ended:
        cli.run_job(job, as_json=True)
    print("afterwards")
    shown = capfd.readouterr()
    assert ended.value.code == WRONG_INPUT and shown.out == "afterwards\n"
    assert shown.err.endswith("error: no such thing; give another\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_command_in_one_line(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    asks = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {each: signal.getsignal(each) for each in asks}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run_job(lambda: signal.raise_signal(number), as_json=True)
        for each in asks:
            signal.raise_signal(each)  # once more, while the command ends
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    line = "error: stopped; give the same command again, what is finished is kept\n"
    assert (ended.value.code, *capfd.readouterr()) == (STOPPED, "", line)


def test_a_command_that_ends_by_itself_leaves_the_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    cli.run_job(lambda: None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


@pytest.mark.parametrize(("line", "status", "out", "err"), [
    ("", WRONG_INPUT, "", "usage: stagecraft COMMAND"),
    ("help", 0, "usage: stagecraft COMMAND", ""),
    ("--help", 0, "usage: stagecraft COMMAND", ""),
    ("help recipes", 0, "usage: stagecraft recipes", ""),
    ("recipes --help", 0, "usage: stagecraft recipes", ""),
    ("paln", WRONG_INPUT, "", "error: there is no command 'paln'; did you mean plan"),
    ("recipes --all", WRONG_INPUT, "", "error: unrecognized arguments: --all; see stagecraft recipes --help"),
])  # fmt: skip
def test_what_is_asked_for_is_output_and_what_is_wrong_is_an_error(
    line: str, status: int, out: str, err: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stagecraft", *line.split()])
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = int(end.code or 0)
    shown = capfd.readouterr()
    assert ended == status and shown.out.startswith(out) and shown.err.startswith(err)
    assert bool(shown.out) == bool(out) and bool(shown.err) == bool(err)
    assert out != "usage: stagecraft COMMAND" or all(f"  {name} " in shown.out for name in COMMANDS)


def test_the_version_is_the_project_s(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["stagecraft", "--version"])
    main()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capfd.readouterr().out == f"stagecraft {version}\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    read, written = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = [sys.executable, "-m", "commands", "help"]
    done = subprocess.run(line, cwd=ROOT, env=buffered, stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    assert (done.returncode, done.stderr) == (CRASHED, b"")


@pytest.mark.parametrize(("given", "resume", "auto"), [
    (["--resume", "tiny"], True, False),
    (["tiny", "--resume"], True, False),
    (["tiny", "--resume", "must", "--seed", "1"], True, False),
    (["--resume", "auto", "tiny"], False, True),
    (["--resume=never", "tiny"], False, False),
    (["tiny"], False, False),
])  # fmt: skip
def test_resume_takes_no_other_word_for_its_value(
    given: list[str], resume: bool, auto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr("sys.argv", ["stagecraft pretrain", *given])
    monkeypatch.setattr(begin, "begin", lambda recipe, request, *more: asked.append(request))
    pretrain.main()
    assert (asked[0].resume, asked[0].auto) == (resume, auto)


@pytest.mark.parametrize(("rank", "doubt"), [("0", ", unless another rank was killed"), (None, "")])
def test_a_bug_is_called_one_and_a_rank_doubts_it(
    rank: str | None, doubt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a rank a killed peer is an error of its own communication."""

    def job() -> None:
        raise RuntimeError("connection reset by peer")

    monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError):
        cli.run_job(job)
    assert capsys.readouterr().err == f"this is a bug of Stagecraft{doubt}; please report it with the lines below\n"


def test_a_lost_peer_is_no_bug() -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset")
    nccl = type("DistBackendError", (RuntimeError,), {})("NCCL communicator was aborted")
    for error in (gloo, nccl):
        assert before_traceback(error, True).startswith("another rank has ended or does not answer; ")
        assert before_traceback(error, False).startswith("this is a bug of Stagecraft; ")
