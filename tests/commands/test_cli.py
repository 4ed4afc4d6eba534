"""Standard output is for the result."""

import subprocess
import sys

import pytest

from commands import cli
from recipes.registry import ROOT
from support.errors import WRONG_INPUT, UserError

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


def test_an_interrupt_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run_job(job)
    assert ended.value.code == 130
    assert capfd.readouterr().err == "error: interrupted; the same command goes on from what is finished\n"
