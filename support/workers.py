"""The processes that share the parts of a cleaning."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from support.errors import UserError

Result = TypeVar("Result")
Runner = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def processes(workers: int) -> Iterator[Runner]:
    """A map over processes that keeps order and reads only a few jobs ahead; in this process where one is enough."""
    if workers == 1:
        yield lambda function, jobs: map(function, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_become_worker)
    try:
        yield partial(_in_order, pool, 2 * workers)
    except BrokenProcessPool:
        raise UserError(
            "a cleaning process was killed, perhaps for want of memory; the same command goes on, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, ahead: int, function: Callable[[Any], Result], jobs: Iterable[Any]
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for job in jobs:
        waiting.append(pool.submit(function, job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _become_worker() -> None:
    """Use one core, and end when the parent does, however it ends."""
    import signal

    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
