"""What a run says in plain lines: the same from its files, whoever prints them."""

import time
from pathlib import Path

from planner.resolve import data_degree
from run.directory import Run, read_run
from run.feed import is_step
from support.json_object import JsonObject


class Lines:
    """Turns what happened to a run into the lines that a person reads.

    Args: the run directory, and whether steps are told that only say how far the run is.
    """

    def __init__(self, path: Path, steps: bool = True) -> None:
        self.path, self.steps = path, steps
        self.run: Run | None = None
        self.first = self.last = 0
        self.waiting: list[JsonObject] = []

    def of(self, happened: JsonObject) -> list[str]:
        """The lines of an event or of a step.

        Which step is the last stands in the event `training`; steps that are read before it wait for it.
        """
        match happened.get("event"):
            case "fault":
                shown = happened.get("log", []) if happened.get("rank") else []  # what rank 0 says is shown anyway
                return [f"fault: {happened['reason']}", *(f"rank {happened['rank']}: {line}" for line in shown)]
            case "restart":
                self.run, self.waiting = None, []
                where = happened.get("checkpoint") or "the start"
                return [f"launching the ranks again from {where}, after failure {happened['failures']}"]
            case "start":
                self.run, self.waiting = None, []
            case "training":
                self.run = read_run(self.path)
                self.first, self.last = happened["step"], happened["last_step"]
                steps, self.waiting = self.waiting, []
                return [*header(self.run, self.first, self.last), *(line for each in steps for line in self.of(each))]
            case "said":
                return [happened["line"]]
            case "saved":
                return [f"saved {happened['path']}"]
            case "rollback":
                skipped = f"samples {happened['first_sample']} to {happened['last_sample']}"
                return [f"no step is taken: back to the weights of step {happened['to_step']}, past {skipped}"]
            case "slow":
                return [slow(happened)]
            case "passed_over":
                return [f"passing over a damaged checkpoint: {happened['reason']}"]
            case None if is_step(happened) and self.run is None:
                self.waiting.append(happened)
            case None if is_step(happened) and happened["step"] > self.first:
                return self._step(self.run, happened)
        return []

    def _step(self, run: Run | None, metrics: JsonObject) -> list[str]:
        assert run is not None
        wanted = metrics["step"] % run.recipe.intervals.log_every == 0 or metrics["step"] == self.last
        if not ("validation_loss" in metrics or metrics.get("skipped") or (wanted and self.steps)):
            return []
        text = f"loss {_number(metrics['loss'], '.3f')}  {metrics['tokens_per_second']:,.0f} tokens/s"
        if "validation_loss" in metrics:
            text += f"  validation loss {_number(metrics['validation_loss'], '.4f')}"
        if "validation_accuracy" in metrics:
            text += f", {_number(metrics['validation_accuracy'], '.1%')} of pairs preferred"
        if metrics.get("skipped"):
            text += f"  skipped (loss scale {_number(metrics['loss_scale'], ',.0f')})"
        return [f"step {metrics['step']:>6}/{self.last}  {text}"]


def slow(event: JsonObject) -> str:
    """What an event `slow` says."""
    host = f" on {event['host']}" if event["host"] else ""
    rank, since = f"rank {event['rank']}{host}", time.strftime("%H:%M:%S", time.localtime(event["since"]))
    if event["times"] is None:
        return f"as fast as the others again: {rank}, {event['what']}, since {since}"
    if event["what"] == "computing":
        return f"slow: {rank} takes {event['times']:.1f} times the others' time to compute, since {since}"
    if event["what"] == "standing still":
        return f"slow: {rank} stands still over and over: its time is {event['times']:.1f} times as long, since {since}"
    return f"slow: {rank} waits for its data, which makes steps {event['times']:.1f} times as long, since {since}"


def header(run: Run, step: int, last_step: int) -> list[str]:
    """What is about to run, resolved, from after `step` on."""
    recipe, config = run.recipe, run.engine.json
    return [
        f"{recipe.name}: {recipe.model.num_parameters / 1e6:,.1f}M parameters, "
        f"{recipe.tokens_per_step:,} tokens a step, steps {step + 1} to {last_step}",
        f"engine: {run.engine.dtype}, ZeRO stage {config.get('zero_optimization', {}).get('stage', 0)}, "
        f"global batch {config['train_batch_size']} = micro-batch {config['train_micro_batch_size_per_gpu']} x "
        f"accumulation {config['gradient_accumulation_steps']} x data degree {data_degree(recipe, run.world_size)}",
        *(f"deviates from the recipe: {deviation}" for deviation in run.engine.deviations),
        *run.engine.notes,
        f"run: {run.path}",
    ]


def _number(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)
