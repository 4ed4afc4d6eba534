import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.workers import Pool
from tests.patience import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_and_few_jobs_are_read_ahead(count: int) -> None:
    read: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(12):
            read.append(number)
            yield number

    with Pool(count) as pool:
        results = pool.run(math.factorial, jobs())
        assert next(results) == 1
        assert len(read) == (1 if count == 1 else 5)  # two for each process, and the one that makes room
        assert list(results) == [math.factorial(number) for number in range(1, 12)]


def wait_or_fail(seconds: float) -> float:
    if not seconds:
        raise ValueError("this one fails")
    time.sleep(seconds)
    return seconds


def test_a_later_job_that_fails_is_known_before_an_earlier_one_ends() -> None:
    pool, ticks = Pool(2), list[None]()
    with pytest.raises(ValueError, match="this one fails"):
        list(pool.run(wait_or_fail, [600, 0], tick=lambda: ticks.append(None)))
    assert ticks and pool._executor
    for process in list(pool._executor._processes.values()):
        process.kill()
    pool.__exit__()


def test_a_killed_process_is_one_line_with_the_remedy() -> None:
    words = "a worker process was killed, perhaps for want of memory; .* fewer --workers, what is finished is kept"
    with Pool(2) as pool, pytest.raises(ValueError, match=words):
        list(pool.run(signal.raise_signal, [signal.SIGKILL]))


def test_ctrl_c_is_left_to_the_parent() -> None:
    """A terminal sends it to all processes of a command; those that work finish what they do."""
    with Pool(2) as pool:
        assert list(pool.run(signal.raise_signal, [signal.SIGINT])) == [None]


CODE = """
import os, time
from support.workers import Pool
if __name__ == "__main__":
    with Pool(2) as pool:
        print(next(pool.run(int, [0])), *pool._executor._processes, flush=True)
        time.sleep(600)
"""


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        _, *workers = map(int, process.stdout.readline().split())
        process.kill()
    assert workers
    for worker in workers:
        wait_until(lambda: not Path(f"/proc/{worker}").exists(), worker)  # noqa: B023
