"""Processes that share work: each job is a call of a function, and its arguments and result are pickled."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from support.errors import UserError

Given = TypeVar("Given")
Result = TypeVar("Result")
POLL_SECONDS = 0.5


class Pool:
    """Worker processes, or this process alone where `count` is 1. Use as a context manager.

    With `begin` all of them start at once and call it with `arguments`, while the caller goes on; without it a process
    starts with its first job. They are spawned, not forked: a fork would copy the threads' locks of the libraries that
    the caller has loaded, in whatever state they are.
    """

    def __init__(self, count: int, begin: Callable[..., None] | None = None, *arguments: Any) -> None:
        self.count = count
        self._executor: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(count, context, _become_worker, (begin, arguments))
            for _ in range(count if begin else 0):
                self._executor.submit(os.getpid)  # an executor starts a process only when it has something to do

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the jobs that are being done, and drop those that are not begun."""
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[[Given], Result],
        jobs: Iterable[Given],
        ahead: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """The result of each job, in the order of the jobs; `tick` is called now and then while it waits.

        At most `ahead` jobs wait or are being done at a time (twice as many as processes, if it is not given), so that
        jobs that are large, such as texts, are not all in memory. Errors: the first error of any job, at once;
        `UserError` where a process was killed.
        """
        if not self._executor:
            yield from map(function, jobs)
            return
        ahead = ahead or 2 * self.count
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._executor.submit(function, job))
                if len(waiting) > ahead:
                    yield _first(waiting, tick)
            while waiting:
                yield _first(waiting, tick)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the same command again with fewer "
                "--workers, what is finished is kept"
            ) from None


def _first(waiting: deque[Future[Result]], tick: Callable[[], None]) -> Result:
    """Wait for the job that was given first, and take it off. Errors: that of any job, as soon as it fails."""
    while True:
        for future in waiting:
            if future.done():
                future.result()
        done = waiting[0].done()
        tick()  # after that: what the last job has counted is told
        if done:
            return waiting.popleft().result()
        wait([future for future in waiting if not future.done()], POLL_SECONDS, FIRST_COMPLETED)


def _become_worker(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Use one core, leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    # The processes are the parallelism: threads of libraries (rensa's, tokenizers') would only compete with them.
    os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin(*arguments)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
