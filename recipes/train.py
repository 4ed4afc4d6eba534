"""One rank of a training run: the loop."""

import json
import math
import os
import signal
import time
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.sampling import TokenStream, windows
from data.shards import Shard
from model import checkpoint
from model.engine import StepResult, build_engine, evaluate, set_learning_rate, start_process_group, train_step
from model.gpt import GPT
from model.init import init_weights
from recipes import report
from recipes.display import Display
from recipes.prepare import run_data
from recipes.recipe import Recipe
from recipes.run import Request, Run, create, plan_run, truncate_metrics

if TYPE_CHECKING:
    from model.engine import DeepSpeedEngine

FINAL_SAMPLES = 4096  # the last evaluation reads this much of the validation split: all of a small one
MOST_SKIPPED = 10  # steps in a row without an update, after which a run that has no loss scale to find is lost
SCHEDULER_OF_RECIPE = "scheduler"  # the JSON section that takes the learning rate out of the recipe's hands


@dataclass
class Position:
    """Where a run is: all the state that the engine does not hold."""

    step: int = 0
    consumed_samples: int = 0


def train(recipe: Recipe, request: Request) -> None:
    """Train to the last step, evaluating and saving on the way, and report."""
    start_process_group()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    run = plan_run(recipe, _same_path(recipe, request), world)
    display = Display(run, enabled=rank == 0)
    folder = run_data(run, display.say)
    stream = TokenStream(Shard(folder / "train"), run.recipe.model.seq_length, run.recipe.seed)
    samples, mask = (
        torch.from_numpy(a) for a in windows(Shard(folder / "validation").tokens, run.recipe.model.seq_length)
    )
    if rank == 0:
        create(run, folder, world)
    _place_wandb(run, display)
    engine = _engine(run)
    saved = checkpoint.load_newest(engine, run.checkpoints, display.say) if run.resume else None
    position = Position(**saved) if saved else Position()
    if rank == 0:
        truncate_metrics(run.metrics, position.step)
    loop = Loop(run, engine, stream, (samples, mask), display, position)
    display.start(position.step, world)
    try:
        loop.run_to_last_step()
    finally:
        display.finish()
    final = loop.validation_loss(FINAL_SAMPLES)
    if rank == 0:
        report.write(run, position.step, final, min(FINAL_SAMPLES, len(samples)), world)
        report.show(run.path)
    torch.distributed.destroy_process_group()


def _same_path(recipe: Recipe, request: Request) -> Request:
    """Without a launcher of ours to choose it, rank 0 chooses the run directory for all."""
    path: list[Any] = [str(plan_run(recipe, request, torch.distributed.get_world_size()).path)]
    torch.distributed.broadcast_object_list(path)
    return Request(**{**asdict(request), "run_dir": path[0]})


def _engine(run: Run) -> "DeepSpeedEngine":
    model = GPT(run.recipe.model)
    init_weights(model, run.recipe.model, run.recipe.seed)
    return build_engine(model, run.engine.json)


def _place_wandb(run: Run, display: Display) -> None:
    """Let wandb write into the run directory, and offline where there is no account to write to."""
    if not run.engine.json.get("wandb", {}).get("enabled"):
        return
    import wandb

    os.environ.setdefault("WANDB_DIR", str(run.path))
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        os.environ["WANDB_MODE"] = "offline"
        display.say("wandb: no account is configured, logging offline")


class Loop:
    """The training loop with what it reads, drives and writes."""

    def __init__(
        self,
        run: Run,
        engine: "DeepSpeedEngine",
        stream: TokenStream,
        validation: tuple[torch.Tensor, torch.Tensor],
        display: Display,
        position: Position,
    ) -> None:
        self.run, self.engine, self.stream, self.validation = run, engine, stream, validation
        self.display, self.position = display, position
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.stop_asked = False
        self.skipped_in_a_row = 0

    def run_to_last_step(self) -> None:
        """Train; save at intervals, at the end, and where a signal asks to stop."""
        every = self.run.recipe.intervals
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        while self.position.step < self.run.last_step:
            metrics, stop = self._step()
            step = self.position.step
            last = stop or step == self.run.last_step
            if step % every.evaluate_every == 0 or last:
                metrics["validation_loss"] = self.validation_loss(every.evaluate_samples)
            self._record(metrics)
            if step % every.save_every == 0 or last:
                self._save()
            if stop:
                raise ValueError(f"stopped after step {step} and saved; go on with --resume --run-dir {self.run.path}")

    def _step(self) -> tuple[dict[str, Any], bool]:
        recipe, position = self.run.recipe, self.position
        config = self.run.engine.json
        began = time.perf_counter()
        rate = config["optimizer"]["params"]["lr"]
        if SCHEDULER_OF_RECIPE not in config:
            # The rate for the tokens that are read after this step, so that the first step does not stand still.
            seen = (position.consumed_samples + config["train_batch_size"]) * recipe.model.seq_length
            set_learning_rate(self.engine, rate * recipe.schedule.lr_ratio(seen))
        # Dropout is a function of seed, place and rank: nothing about it has to be saved.
        place = np.random.SeedSequence([recipe.seed, position.consumed_samples, self.rank])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))
        result = train_step(self.engine, self._micro_batches())
        position.consumed_samples += config["train_batch_size"]
        position.step += 1
        loss, stop = self._agree(result)
        seconds = time.perf_counter() - began
        self._stop_if_lost(loss, result.skipped)
        return {
            "step": position.step,
            "consumed_samples": position.consumed_samples,
            "loss": loss,
            "grad_norm": result.grad_norm,
            "lr": self.engine.get_lr()[0],
            "loss_scale": result.loss_scale,
            "skipped": result.skipped,
            "tokens_per_second": config["train_batch_size"] * recipe.model.seq_length / seconds,
        }, stop

    def _stop_if_lost(self, loss: float, skipped: bool) -> None:
        """Do not burn hours on weights that no step will mend.

        A loss that is not finite means that the weights are not, unless the step was skipped: then it may have been
        one bad batch or one bad chip. In fp16 skipping is how the loss scale is found; elsewhere it must not go on.
        """
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        hopeless = self.skipped_in_a_row >= MOST_SKIPPED and self.run.engine.dtype != "fp16"
        if hopeless or not (math.isfinite(loss) or skipped):
            raise ValueError(
                f"the loss is {loss} at step {self.position.step}, {self.skipped_in_a_row} steps skipped in a row: the "
                "weights are lost; lower optimizer.lr or raise schedule.warmup_tokens, and go back to a checkpoint in "
                f"{self.run.checkpoints}"
            )

    def _micro_batches(self) -> list[torch.Tensor]:
        """This rank's micro-batches of the global batch: the batch is the same whatever the world size."""
        config, first = self.run.engine.json, self.position.consumed_samples
        size = config["train_micro_batch_size_per_gpu"]
        starts = range(first + self.rank * size, first + config["train_batch_size"], size * self.world)
        return [torch.from_numpy(self.stream.batch(start, size)) for start in starts]

    def _agree(self, result: StepResult) -> tuple[float, bool]:
        """The loss over all ranks, and whether any was asked to stop."""
        pair = torch.tensor([result.loss, float(self.stop_asked)], dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(pair)
        return float(pair[0]) / self.world, bool(pair[1])

    def validation_loss(self, most: int) -> float:
        """Mean loss in nats over at most `most` validation samples."""
        samples, mask = (tensor[:most] for tensor in self.validation)
        return evaluate(self.engine, samples, mask, self.run.engine.json["train_micro_batch_size_per_gpu"])

    def _record(self, metrics: dict[str, Any]) -> None:
        if self.rank:
            return
        with open(self.run.metrics, "a") as stream:
            finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}  # JSON knows no NaN
            stream.write(json.dumps(finite) + "\n")
        self.display.step(metrics)
        if self.engine.monitor.enabled:
            # DeepSpeed's monitors log no training loss of their own outside pipelines (0.19.8).
            names = ("loss", "validation_loss", "grad_norm", "lr", "loss_scale", "tokens_per_second")
            events = [(f"train/{name}", metrics[name], metrics["step"]) for name in names if name in metrics]
            self.engine.monitor.write_events(events)

    def _save(self) -> None:
        keep = self.run.recipe.intervals.keep_checkpoints
        path = checkpoint.save(self.engine, self.run.checkpoints, self.position.step, asdict(self.position), keep)
        self.display.say(f"saved {path}")

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_asked = True
