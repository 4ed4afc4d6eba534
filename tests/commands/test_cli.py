"""Standard output is for the result."""

import signal
import subprocess
import sys

import pytest

from commands import cli
from recipes.registry import ROOT
from support.errors import STOPPED, WRONG_INPUT, UserError

NOISY = """
import logging, os, subprocess, sys
from commands import cli

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_in_one_line(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.run_job(lambda: signal.raise_signal(number), as_json=True)
    line = "error: stopped; give the same command again, what is finished is kept\n"
    assert (ended.value.code, *capfd.readouterr()) == (STOPPED, "", line)
    assert signal.getsignal(signal.SIGTERM) == before
