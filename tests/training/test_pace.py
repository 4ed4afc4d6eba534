"""Ranks that are slower than the others for long are named, and nobody else."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.distributed import run_ranks
from tests.faults import loops
from tests.faults.loops import Fault, happened, run_steps, steps, tensors
from training import pace
from training.pace import COMPUTING, DATA, STANDING, Change, Judge, Lookout, Pace, Work

USUAL = [1.0, 1.0, 1.0, 1.0]
Probe = tuple[list[float], list[float]]


def judged(probes: list[Probe], every: float = 10.0) -> list[tuple[float, Change]]:
    """What is said of probes that come every so many seconds, from second 100 on, and when."""
    judge, said = Judge(len(probes[0][0])), []
    for number, (computing, waiting) in enumerate(probes):
        at = 100.0 + number * every
        said += [(at, change) for change in judge.take(at, every, computing, waiting, [0.0] * len(computing))]
    return said


def computing(*each: list[float]) -> list[Probe]:
    return [(times, [0.0] * len(times)) for times in each]


def test_a_rank_that_is_slow_for_a_minute_is_named_once() -> None:
    """Six probes span 50 seconds: the seventh is the first after a minute."""
    slow = [1.0, 1.0, 2.0, 1.0]
    said = judged(computing(USUAL, USUAL, *[slow] * 20))
    assert said == [(180.0, Change(2, COMPUTING, True, 2.0, 120.0))]


def test_a_slow_rank_that_is_fast_again_is_said_so() -> None:
    slow = [1.0, 1.0, 2.0, 1.0]
    said = judged(computing(*[slow] * 8, *[USUAL] * 8))
    assert said == [
        (160.0, Change(2, COMPUTING, True, 2.0, 100.0)),
        (240.0, Change(2, COMPUTING, False, 1.0, 180.0)),
    ]


def test_a_moment_is_not_long() -> None:
    """Five slow probes, two usual ones, and so on: each streak begins anew."""
    slow = [1.0, 1.0, 5.0, 1.0]
    assert judged(computing(*([slow] * 5 + [USUAL] * 2) * 5)) == []


def test_one_probe_may_differ_and_no_more() -> None:
    slow = [1.0, 1.0, 5.0, 1.0]
    one = [slow] * 3 + [USUAL] + [slow] * 3
    assert judged(computing(*one)) == [(160.0, Change(2, COMPUTING, True, 5.0, 100.0))]
    assert judged(computing(*[slow] * 2, USUAL, *[slow] * 2, USUAL, slow, slow)) == []
    again = judged(computing(*[slow] * 7, *[USUAL] * 4, slow, *[USUAL] * 4))
    assert [(at, change.slow) for at, change in again] == [(160.0, True), (230.0, False)]


def test_few_long_steps_are_not_many_probes() -> None:
    """Steps of two minutes: a probe each. Six of them have to agree, too."""
    slow = [1.0, 1.0, 2.0, 1.0]
    assert [at for at, _ in judged(computing(*[slow] * 8), every=120.0)] == [700.0]


def test_two_slow_ranks_and_half_of_the_ranks_are_named() -> None:
    two = judged(computing(*[[1.0, 2.0, 1.0, 1.0, 3.0]] * 7))
    half = judged(computing(*[[2.0, 1.0, 1.0, 2.0]] * 7))
    assert [(change.rank, change.times) for _, change in two] == [(1, 2.0), (4, 3.0)]
    assert [change.rank for _, change in half] == [0, 3]
    assert [change.rank for _, change in judged(computing(*[[1.0, 2.0]] * 7))] == [1]


def test_noise_names_nobody_and_hides_nobody() -> None:
    """Each time is off by up to a fifth, and every tenth is ten times as long; rank 3 is twice as slow besides."""
    draw = random.Random(1)

    def noisy(slow: float) -> list[float]:
        times = [draw.uniform(0.8, 1.2) * (10 if draw.random() < 0.1 else 1) for _ in range(16)]
        return [time * (slow if rank == 3 else 1) for rank, time in enumerate(times)]

    assert judged(computing(*[noisy(1.0) for _ in range(500)])) == []
    said = [change for _, change in judged(computing(*[noisy(2.0) for _ in range(500)]))]
    assert [(change.rank, change.slow) for change in said] == [(3, True)] and 1.5 < said[0].times < 3


def test_a_rank_that_waits_for_its_data_is_named_for_that() -> None:
    """Of ten seconds it waits five: a step takes twice as long as without them."""
    said = judged([(USUAL, [0.2, 5.2, 0.2, 0.3])] * 7)
    assert said == [(160.0, Change(1, DATA, True, 2.0, 100.0))]
    assert judged([(USUAL, [5.0] * 4)] * 7) == []  # the storage is slow for all
    assert judged([(USUAL, [0.0, 10.0, 0.0, 0.0])] * 7)[0][1].times == pytest.approx(100)


def test_a_rank_that_stands_still_is_named_for_that() -> None:
    """Its time has a half of standing still, and the others' a tenth: that is 1 / (1 - 0.4) times as long."""
    judge, still = Judge(4), [0.1, 0.1, 0.5, 0.1]
    said = [judge.take(10.0 * probe, 10.0, USUAL, [0.0] * 4, still) for probe in range(7)]
    assert said == [[]] * 6 + [[Change(2, STANDING, True, pytest.approx(1 / 0.6), 0.0)]]


def share(path: Path) -> float:
    """The share of its time that this process stands still, in a second."""
    (path / "pid").write_text(str(os.getpid()))
    with mock.patch.object(pace, "REST_SECONDS", 0.05):
        lookout = Lookout()
        until = time.monotonic() + 30
        while not lookout.share and time.monotonic() < until:
            time.sleep(0.05)
    (path / "over").touch()
    return lookout.share


def test_a_process_that_is_stopped_over_and_over_stands_still(tmp_path: Path) -> None:
    """Of 60 ms 30. A sleep of 10 ms that ends meanwhile is 20 to 30 late: 0.4 of its time."""

    def pulse() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        while not (tmp_path / "over").exists():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                os.kill(pid, number)
                time.sleep(0.03)

    pulses = threading.Thread(target=pulse)
    pulses.start()
    (stood,) = run_ranks(1, share, tmp_path)
    pulses.join()
    assert 1 / (1 - stood) > pace.STANDS


def test_one_rank_is_compared_with_nobody() -> None:
    alone = Pace(torch.device("cpu"), 0, 1, None)  # type: ignore[arg-type]
    alone.probed_at -= 1000
    assert alone.told() == [False]


def rank_1_is_slow(path: Path, fault: Fault) -> str:
    """A rank of a run that is probed at each step."""
    measured = Work.seconds

    def seconds(work: Work) -> float:
        measured(work)
        return 3.0 if torch.distributed.get_rank() == 1 else 1.0

    short: dict[str, Any] = {"PROBE_SECONDS": 0.0, "LONG_SECONDS": 0.0, "PROBES": 3, "WAITS": 1e9}
    with mock.patch.multiple(pace, **short), mock.patch.object(Work, "seconds", seconds):
        return loops._rank(path, fault)


def test_probes_leave_training_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with dropout. The probe of step n is judged with step n + 1."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    assert run_steps(plain, 6) == ["", ""]
    monkeypatch.setattr(loops, "_rank", rank_1_is_slow)
    assert run_steps(probed, 6) == ["", ""]
    (said,) = happened(probed, "slow")
    assert (said["rank"], said["what"], said["times"]) == (1, COMPUTING, 3.0) and not happened(plain, "slow")
    assert steps(plain) == steps(probed)
    last = "step-00000006"
    assert tensors(plain / "checkpoints" / last) == tensors(probed / "checkpoints" / last)
