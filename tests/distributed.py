"""Run a function on several gloo ranks. One clean process imports torch and DeepSpeed once; ranks are its forks."""

import os
import pickle
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed import TCPStore

from tests.interpreter import context
from tests.patience import Patience


def run_ranks(world: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Call `function(*args, **options)` on `world` ranks of a process group; return what each gave back.

    A rank that raises, dies or hangs fails the test with its traceback; no process is left behind.
    """
    # The ranks meet here. At rank 0, as is usual, others would come too early and try again only after a second.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        task = partial(function, *args, **options)
        processes.append(context.Process(target=_rank, args=(rank, world, store.port, theirs, task)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    results: dict[int, Any] = {}
    patience = Patience(process.pid for process in processes)
    try:
        while len(results) < world:
            open_pipes = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
            for pipe in wait(list(open_pipes), timeout=1):
                rank = open_pipes[pipe]
                results[rank] = _answer(rank, pipe, processes[rank])
            patience.check(f"ranks {sorted(set(range(world)) - set(results))} gave no answer")
    finally:
        for process in processes:
            process.join(timeout=60 if len(results) == world else 0)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def _answer(rank: int, pipe: Any, process: Any) -> Any:
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        raise AssertionError(f"rank {rank} died with exit code {process.exitcode}") from None
    assert error is None, f"rank {rank} raised:\n{error}"
    return result


def _rank(rank: int, world: int, port: int, pipe: Connection, function: Callable[[], Any]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")  # which is there already
    try:
        import torch

        from model.engine.build import start_process_group

        torch.set_num_threads(1)
        start_process_group()
        # Plain bytes: a tensor that is sent as such is fetched from the rank later, which may have ended by then.
        pipe.send_bytes(pickle.dumps((function(), None)))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))
