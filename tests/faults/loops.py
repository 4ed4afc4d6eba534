"""The loop on ranks of this process: a run in small, in which what ranks read and load can be spoilt."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model.checkpoint import room, write
from model.engine.engine import Engine, MicroBatch
from model.engine.sharded import ShardedEngine
from recipes.registry import ROOT, load
from run import events
from run.directory import created, opened
from run.prepared import run_data
from run.request import Request, plan_run
from support.errors import UserError
from tests.commands.running import metrics, small, write_corpus
from tests.distributed import run_ranks
from training import loop, stop, train
from training.saves import Saves
from training.source import Source

BATCH = 8  # samples a step, of the small run


@dataclass(frozen=True)
class Fault:
    """What happens to a run: losses of NaN from the first of these steps to the second, a signal, a spoilt weight.

    Rank 1 reads the samples, gets SIGUSR2 in each step of `save` and SIGTERM in step `stop`, and `loads` a weight that
    is not what was saved. After step `breaks` its weights are NaN. It is killed in the second micro-batch of step
    `dies`. Where step `holds` is given, it writes its checkpoints in that step, or when training waits for them. Up to
    step `scarce` there is no memory for copies. After each step the clock of all ranks is set back by `clock` seconds.
    """

    bad: tuple[int, int] = (0, -1)
    save: tuple[int, ...] = ()
    stop: int = -1
    holds: int = 0
    scarce: int = -1
    loads: bool = False
    breaks: int = -1
    most_skipped: int = 10
    clock: float = 0.0
    dies: int = -1


def run_steps(
    path: Path, last: int, *settings: str, engine: str | None = None, world: int = 2, fault: Fault | None = None
) -> list[str]:
    """Train a small run up to step `last`, where it is there from where it is. Returns what each rank ended with."""
    config = engine and str(ROOT / "ds_configs" / f"{engine}.json")
    resume = (path / "metrics.jsonl").exists()
    _, *begin = small(write_corpus(path.with_name("corpus.jsonl")))
    begin += ["intervals.keep_checkpoints=99", "schedule.train_tokens=51200"]
    request = Request(
        deepspeed_config=config,
        settings=(*(() if resume else begin), *settings),
        run_dir=str(path),
        max_steps=last,
        resume=resume,
    )
    run = plan_run(load("tiny"), request, world)
    mixture = run_data(run, lambda line: None)
    with created(run, mixture):
        return run_ranks(world, _rank, path, fault or Fault())


def _rank(path: Path, fault: Fault) -> str:
    run, mixture = opened(path)
    stop.listen()
    with _spoilt(fault):
        try:
            train._to_the_end(run, mixture, alone=False)
        except UserError as error:
            return f"{error.status}: {error}"
    return ""


@contextmanager
def _spoilt(fault: Fault) -> Iterator[None]:
    read, load_newest, rank = Source.training, train.load_newest, torch.distributed.get_rank()
    trained, finished, save_file, release = ShardedEngine._train, Saves.finish, write.save_file, threading.Event()
    free, reached = room.free, [0]
    loss, now, back = ShardedEngine._loss, time.time, [0.0]

    def training(self: Source, first: int, count: int, among: tuple[int, int] | None = None) -> MicroBatch:
        batch, step = read(self, first, count, among), first // BATCH + 1
        spoils = rank == 1 and fault.bad[0] <= step <= fault.bad[1]
        return replace(batch, weights_BS=batch.weights_BS * math.nan) if spoils else batch

    def step(self: ShardedEngine, batches: list[MicroBatch]) -> tuple[float, float]:
        result = trained(self, batches)
        back[0] += fault.clock
        reached[0] = self.deepspeed.global_steps
        for number, at in ((signal.SIGUSR2, fault.save), (signal.SIGTERM, (fault.stop,))):
            if rank == 1 and self.deepspeed.global_steps in at:
                os.kill(os.getpid(), number)
        if self.deepspeed.global_steps == fault.holds:
            release.set()
            for thread in threading.enumerate():
                if thread.name == write.THREAD:
                    thread.join()
        if rank == 1 and self.deepspeed.global_steps == fault.breaks:
            for parameter in self.names:
                parameter.data.fill_(math.nan)
        return result

    def computed(self: ShardedEngine, batch: MicroBatch) -> torch.Tensor:
        if rank == 1 and self.deepspeed.global_steps == fault.dies - 1 and self.deepspeed.micro_steps % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, batch)

    def loaded(trainer: Engine, *arguments: Any) -> Any:
        state = load_newest(trainer, *arguments)
        if fault.loads and rank == 1:
            next(p for p, name in trainer.names.items() if name == "blocks.0.mlp.up.weight").data.flatten()[3] += 0.01
        return state

    def put(*arguments: Any) -> None:
        assert rank == 0 or not fault.holds or reached[0] <= fault.scarce or release.wait(60)
        save_file(*arguments)

    def finish(self: Saves, wait: bool = True) -> None:
        if wait and self.pending:
            release.set()
        finished(self, wait)
        release.clear()

    with (
        mock.patch.object(write, "save_file", put),
        mock.patch.object(room, "free", lambda: 0 if reached[0] <= fault.scarce else free()),
        mock.patch.object(Saves, "finish", finish),
        mock.patch.object(Source, "training", training),
        mock.patch.object(ShardedEngine, "_train", step),
        mock.patch.object(ShardedEngine, "_loss", computed),
        mock.patch.object(train, "load_newest", loaded),
        mock.patch.object(loop, "MOST_SKIPPED", fault.most_skipped),
        mock.patch.object(time, "time", lambda: now() - back[0]),
    ):
        yield


def happened(path: Path, event: str) -> list[dict[str, Any]]:
    """The events of a kind without their time."""
    return [{k: v for k, v in each.items() if k != "time"} for each in events.read(path) if each["event"] == event]


def steps(path: Path) -> list[dict[str, Any]]:
    """The steps of a run, in what is a function of it."""
    return metrics(path)


def tensors(checkpoint: Path) -> list[bytes]:
    """The files of a checkpoint that hold its tensors."""
    return [file.read_bytes() for file in sorted(checkpoint.glob("*.safetensors"))]
