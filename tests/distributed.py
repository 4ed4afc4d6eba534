"""Run a function on several gloo ranks. One clean process imports torch and DeepSpeed once; ranks are its forks."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from launch.local import free_port

DEADLINE_SECONDS = 120.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "deepspeed", "transformers", "tests.preload"])


def run_ranks(world: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Call `function(*args, **options)` on `world` ranks of a process group; return what each gave back.

    A rank that raises, dies or hangs fails the test with its traceback; no process is left behind.
    """
    queue = _context.Queue()
    port = free_port()
    processes = [
        _context.Process(target=_rank, args=(r, world, port, queue, partial(function, *args, **options)))
        for r in range(world)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while len(results) < world:
            assert time.monotonic() < deadline, f"ranks {sorted(set(range(world)) - set(results))} gave no answer"
            if queue.empty():
                dead = [r for r, p in enumerate(processes) if p.exitcode not in (None, 0) and r not in results]
                assert not dead or not queue.empty(), (
                    f"rank {dead[0]} died with exit code {processes[dead[0]].exitcode}"
                )
                time.sleep(0.02)
                continue
            rank, result, error = queue.get()
            assert error is None, f"rank {rank} raised:\n{error}"
            results[rank] = result
    finally:
        for process in processes:
            process.join(timeout=5 if len(results) == world else 0)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def _rank(rank: int, world: int, port: int, queue: Any, function: Callable[[], Any]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        import torch

        from model.engine.engine import start_process_group

        torch.set_num_threads(1)
        start_process_group()
        queue.put((rank, function(), None))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
