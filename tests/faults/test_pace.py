"""A rank whose process gets less of its processor than the others is named while the run goes on."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from run import events, members
from tests.distributed import run_ranks
from training import pace
from training.log import Log
from training.pace import COMPUTING, Pace


def lockstep(path: Path) -> None:
    """Steps of two ranks until rank 1 was named, and until it is fast again once nobody stops it any more."""
    rank = torch.distributed.get_rank()
    members.join(path, str(rank))
    pace.PROBE_SECONDS, pace.PROBES, pace.LONG_SECONDS = 0.02, 4, 0.1
    subject = Pace(torch.device("cpu"), rank, 2, Log(SimpleNamespace(path=path), None))  # type: ignore[arg-type]
    (path / f"up{rank}").touch()
    over = False
    while not over:
        found = [line["times"] for line in events.read(path) if line["event"] == "slow" and line["rank"] == 1]
        if found:
            (path / "named").touch()
        told = torch.tensor([len(found) > 1 and found[-1] is None, *subject.told()])
        torch.distributed.all_reduce(told)
        over, *numbers = told.tolist()
        subject.take(numbers)
        time.sleep(0.005)


def pulse(path: Path) -> None:
    """Stop rank 1 for two milliseconds of three, until it was named."""
    while not (path / "up1").exists():
        time.sleep(0.01)
    member = members.read(path, "1")
    assert member
    while not (path / "named").exists():
        for number, seconds in ((signal.SIGSTOP, 0.002), (signal.SIGCONT, 0.001)):
            os.kill(member.pid, number)
            time.sleep(seconds)


@pytest.mark.faults
def test_a_rank_that_is_stopped_over_and_over_is_named(tmp_path: Path) -> None:
    threading.Thread(target=pulse, args=(tmp_path,), daemon=True).start()
    run_ranks(2, lockstep, tmp_path)
    first, *_, last = [line for line in events.read(tmp_path) if line["event"] == "slow" and line["rank"] == 1]
    assert first["what"] == COMPUTING and first["times"] > 1.5 and first["host"] == os.uname().nodename
    assert last["times"] is None and last["since"] > first["since"]
