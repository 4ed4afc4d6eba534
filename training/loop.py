"""The training loop: steps, and what is evaluated, saved and undone between them."""

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from model.checkpoint.format import Tie, completed
from model.engine.engine import Engine, LossScaleFloorError, MicroBatch
from planner.hardware import peak_flops
from planner.saving import saving
from run.directory import Run
from support.errors import StoppedError, WeightsLostError
from support.json_object import JsonObject
from training import proof
from training.device import device_name, memory_bytes
from training.log import Log
from training.pace import Pace
from training.rollback import MOST_SKIPPED, Position, roll_back
from training.saves import Saves
from training.source import Ahead, Source
from training.stop import asked, save_asked
from training.tasks import Scores

SCHEDULER_OF_JSON = "scheduler"  # the section that takes the learning rate out of the recipe's hands


class Loop:
    """The training loop with what it reads, drives and writes."""

    def __init__(self, run: Run, trainer: Engine, source: Source, log: Log, position: Position, tie: Tie) -> None:
        self.run, self.trainer, self.source = run, trainer, source
        self.log, self.position, self.tie = log, position, tie
        micro_batch = run.engine.json["train_micro_batch_size_per_gpu"]
        self.ahead = Ahead(partial(source.share, micro_batch, trainer.grid.dp_rank, trainer.grid.dp))
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.last_step = run.last_step_from(position.step, position.consumed_samples)
        self.save_seconds = saving(run.recipe, self.world).interval_seconds
        self.saves, self.saved_at = Saves(run, trainer, log, tie), time.monotonic()
        self.writing = 0  # ranks that still wrote a checkpoint after the last step
        self.peak_flops = peak_flops(device_name(), run.engine.dtype) if torch.cuda.is_available() else None
        self.skipped_in_a_row = 0
        self.trained: tuple[int, int] | None = None  # position and size of the batch of the last step that was taken
        self.last_norms: deque[float] = deque(maxlen=5)
        self.pace = Pace(trainer.device, self.rank, self.world, log)
        self.scores = Scores(run, trainer, log) if run.recipe.tasks.names else None

    def run_to_last_step(self) -> None:
        """Train; save at intervals, at the end, and where a signal asks to stop.

        A save at an interval is written while the next steps are taken. That of the end or of a stop is waited for.
        """
        every = self.run.recipe.intervals
        while self.position.step < self.last_step:
            metrics, (stop, save) = self._step()
            step = self.position.step
            last = stop or step == self.last_step
            # The launcher gives a rank 30 s from SIGTERM to its end: a run that is to stop saves at once.
            if not stop and (step % every.evaluate_every == 0 or last):
                metrics |= self._evaluated(every.evaluate_samples)
            if not stop and self.scores and self.run.recipe.tasks.due(step, self.last_step):
                metrics |= self.scores.now()
            self._record(metrics)
            if not self.writing:
                self.saves.finish(wait=False)
            if self._is_lost():
                self._roll_back()
            elif save or last:
                self._save()
            if last:
                self.saves.finish()
            if stop:
                number = asked()
                self.log.note("stop", signal=number and number.name)  # none: another rank got it
                raise StoppedError(
                    f"stopped after step {step} and saved; go on with --resume --run-dir {self.run.path}"
                )

    def _step(self) -> tuple[JsonObject, tuple[bool, bool]]:
        recipe, position, grid = self.run.recipe, self.position, self.trainer.grid
        config, length = self.run.engine.json, self.run.recipe.model.seq_length
        began = time.perf_counter()
        batch = self._batch_at(position.consumed_samples)
        self.trainer.set_global_batch(batch)
        if SCHEDULER_OF_JSON not in config:
            # The rate for the tokens that are read after this step, so that the first step does not stand still.
            ratio = recipe.schedule.lr_ratio((position.consumed_samples + batch) * length)
            self.trainer.set_learning_rate(config["optimizer"]["params"]["lr"] * ratio)
        # Dropout is a function of seed, position and place: nothing about it has to be saved. Tensor ranks draw alike.
        place = np.random.SeedSequence([recipe.seed, position.consumed_samples, grid.data.rank, grid.stage])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))
        try:
            after = position.consumed_samples + batch
            waiting = time.perf_counter()
            batches = self.ahead.take(position.consumed_samples, batch, self._batch_at(after))
            data_seconds = time.perf_counter() - waiting
            self.pace.waited += data_seconds
            result = self.trainer.train_step(batches)
        except LossScaleFloorError as error:
            norms = ", ".join(f"{norm:.3g}" for norm in self.last_norms) or "none"
            self.saves.finish()  # all ranks are here: the scale is one for all
            good = completed(self.run.checkpoints)
            raise WeightsLostError(
                f"{error}; last gradient norms: {norms}; last good checkpoint: {good[-1] if good else 'none'}"
            ) from None
        self.last_norms.append(result.grad_norm)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        if not result.skipped:
            self.trained = position.consumed_samples, batch
        position.consumed_samples += batch
        position.step += 1
        stop, save, memory = self._agreed()
        seconds = time.perf_counter() - began
        speed = batch * length / seconds
        return {
            **self._where(),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.learning_rate,
            "loss_scale": result.loss_scale,
            "skipped": result.skipped,
            "tokens_per_second": speed,
            "mfu": speed * recipe.model.flops_per_token / self.world / self.peak_flops if self.peak_flops else None,
            "seconds": seconds,
            "data_seconds": data_seconds,
            "memory_bytes": memory,
            "samples_by_part": self.source.samples_by_part(position.consumed_samples),
        }, (stop, save)

    def _where(self) -> JsonObject:
        """How far the run is, and what time it is."""
        step, samples = self.position.step, self.position.consumed_samples
        tokens = samples * self.run.recipe.model.seq_length
        return {"step": step, "consumed_samples": samples, "tokens": tokens, "time": time.time()}

    def _is_lost(self) -> bool:
        """Whether no step is taken any more: many were skipped in a row.

        One may have been a bad batch or a bad chip, and a dynamic loss scale is found by skipping. The weights are as
        the last step that was taken left them, which may be what makes every loss infinite.
        """
        return self.skipped_in_a_row >= MOST_SKIPPED and not self.trainer.seeks_loss_scale()

    def _roll_back(self) -> None:
        self.saves.finish()  # it was begun before the weights were lost
        self.position = roll_back(self.run, self.trainer, self.source, self.log, self.tie, self.position)
        self.skipped_in_a_row, self.trained = 0, None
        self._begin()
        self.saves.finish()

    def _batch_at(self, consumed_samples: int) -> int:
        """The global batch after that many sequences. After the ramp it is the JSON's."""
        batch = self.run.recipe.batch
        full: int = self.run.engine.json["train_batch_size"]
        return batch.at(consumed_samples) if consumed_samples < batch.ramp_samples else full

    def _agreed(self) -> tuple[bool, bool, list[int]]:
        """Whether to stop, whether to save, and the memory of each rank, the same on all ranks: one all-reduce.

        Any rank may ask to stop, or to save; who asks while a checkpoint is written is heard when that is whole. A save
        is due by the count of steps, or by rank 0's clock where none is written; but not while steps are skipped: a
        rollback needs what was saved before. `writing` tells as well how many ranks still write.
        """
        every, free = self.run.recipe.intervals.save_every, self.saves.pending is None
        due = free and self.rank == 0 and time.monotonic() - self.saved_at >= self.save_seconds
        wanted, writes = free and (save_asked() or self.saves.is_asked()), self.saves.writes
        memory = [0] * self.world
        memory[self.rank] = memory_bytes()
        flags = [asked() is not None, wanted, due, writes]
        told = torch.tensor([*flags, *memory, *self.pace.told()], dtype=torch.int64, device=self.trainer.device)
        torch.distributed.all_reduce(told)
        stops, wanted, due, self.writing, *rest = told.tolist()
        memory, pace = rest[: self.world], rest[self.world :]
        self.pace.take(pace)
        due = self.position.step % every == 0 if every else due
        return bool(stops), bool(wanted or (due and not self._skips())), memory

    def _skips(self) -> bool:
        """Whether the last step was skipped where none should be."""
        return self.skipped_in_a_row > 0 and not self.trainer.seeks_loss_scale()

    def _evaluated(self, most: int, name: str = "validation") -> JsonObject:
        """The validation loss, of pairs also the share in which the chosen side gained more, and the seconds."""
        began = time.perf_counter()
        found: JsonObject = {f"{name}_loss": self.validation_loss(most, self.source.validation)}
        if self.source.judged:
            right = self.validation_loss(most, self.source.judged)
            found[f"{name}_accuracy"] = min(1.0, right)  # the weights of a pair add up to 1 as fp32 can
        return {**found, "evaluate_seconds": time.perf_counter() - began}

    def evaluate_at_the_end(self) -> None:
        """Write down the validation loss over the most samples: it has a line of metrics of its own."""
        where = self._where()
        self._record({**where, **self._evaluated(self.run.recipe.intervals.final_samples, "final_validation")})

    def validation_loss(self, most: int, read: Callable[[list[int]], MicroBatch]) -> float:
        """Mean loss over the labels, or the pairs, of at most `most` validation samples, whose rows `read` gives."""
        size, grid = self.run.engine.json["train_micro_batch_size_per_gpu"], self.trainer.grid
        count = min(most, len(self.source.samples))
        labels, mine = 0.0, []
        for first in range(0, count, size * grid.dp):
            # All data ranks compute the same number of micro-batches, because they work in step; some may be empty.
            rows = [row if row < count else len(self.source.samples) for row in range(first, first + size * grid.dp)]
            labels += float(read(rows).weights_BS.sum())
            mine.append(read(rows[grid.dp_rank * size : (grid.dp_rank + 1) * size]))
        return self.trainer.evaluate(mine) / labels

    def _record(self, metrics: JsonObject) -> None:
        if took := self.saves.seconds():
            metrics["save_seconds"] = took
        self.log.metrics(metrics)

    def _save(self) -> None:
        """Begin a save, with a proof. Where the weights' loss is not finite they are lost: the run goes back instead.

        While no step is taken the weights, and so their proof, stay what they were.
        """
        self.saves.finish()
        position, began = self.position, time.perf_counter()
        if self.trained:
            position.proof = proof.taken(self.trainer, self.source, self.run, *self.trained)
            if position.proof.loss is None:
                self._roll_back()
                return
            position.rollbacks = 0
        self._begin(began)

    def _begin(self, since: float | None = None) -> None:
        self.saves.begin(self.position, since)
        self.saved_at = time.monotonic()
