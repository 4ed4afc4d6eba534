"""How long a run will still take: its steps, and the evaluations and saves that are planned."""

import statistics
from collections import deque
from collections.abc import Sequence

from planner.saving import saving
from run.directory import Run
from support.json_object import JsonObject

RECENT = 50  # steps; of evaluations and saves the last few
WARM = 2  # the first steps of a process warm up its caches
SMOOTH = 0.1  # weight of a new estimate


class Left:
    """The end of a run, estimated anew after each step.

    A step takes the median of recent ones, by the sample: a batch-size ramp makes them longer. What is shown is the
    mean of the estimates so far, later the mean of some recent ones: so it does not jump.
    """

    def __init__(self, run: Run, parts: list[JsonObject], last_step: int, step: int, time: float) -> None:
        self.run, self.last_step, self.at = run, last_step, step
        self.batch: int = run.engine.json["train_batch_size"]
        self.saved_at, self.ends_at = time, 0.0
        self.save_interval = saving(run.recipe, run.world_size).interval_seconds
        held_out = sum(part["validation"]["tokens"] for part in parts) // run.recipe.model.seq_length
        intervals = run.recipe.intervals
        self.evaluated = min(intervals.evaluate_samples, held_out), min(intervals.final_samples, held_out)
        self.of_steps: deque[float] = deque(maxlen=RECENT)  # seconds a sample
        self.of_evaluations: deque[float] = deque(maxlen=5)  # seconds a sample
        self.of_tasks: deque[float] = deque(maxlen=3)  # seconds
        self.of_saves: deque[float] = deque(maxlen=3)  # seconds that training waits
        self.of_writes: deque[float] = deque(maxlen=3)  # seconds from the beginning of a save to its end
        self.samples, self.estimates = 0, 0

    def step(self, metrics: JsonObject) -> None:
        """Take note of a step."""
        read, tokens_per_second = metrics["consumed_samples"], metrics.get("tokens_per_second")
        batch = read - self.samples if 0 < read - self.samples <= self.batch else self.batch
        self.at, self.samples = metrics["step"], read
        seconds = metrics.get("seconds")
        if seconds is None and tokens_per_second:
            seconds = batch * self.run.recipe.model.seq_length / tokens_per_second
        if seconds is None:
            return
        self.estimates += 1
        if self.estimates == WARM + 1:
            self.of_steps.clear()
        self.of_steps.append(seconds / batch)
        if "task_seconds" in metrics:
            self.of_tasks.append(metrics["task_seconds"])
        if "evaluate_seconds" in metrics and self.evaluated[0]:
            self.of_evaluations.append(metrics["evaluate_seconds"] / self.evaluated[0])
        if time := metrics.get("time"):
            new = time + metrics.get("evaluate_seconds", 0.0) + metrics.get("task_seconds", 0.0) + self._seconds()
            weight = max(SMOOTH, 1 / max(1, self.estimates - WARM))
            self.ends_at = self.ends_at + weight * (new - self.ends_at) if self.estimates > 1 else new

    def saved(self, event: JsonObject) -> None:
        """Take note of a save."""
        seconds: float = event.get("seconds", 0.0)
        self.saved_at = event.get("time", self.saved_at + seconds) - seconds
        if seconds:
            self.of_writes.append(seconds)
            self.of_saves.append(event.get("waited", seconds))

    def seconds(self, now: float) -> float | None:
        """Seconds from `now` to the end; None where no step says how fast this run is."""
        return max(0.0, self.ends_at - now) if self.ends_at else None

    @property
    def next_save_step(self) -> int | None:
        """The step after which the run saves next; None where the clock says when."""
        every = self.run.recipe.intervals.save_every
        return min(self.last_step, (self.at // every + 1) * every) if every else None

    def seconds_to_save(self, now: float) -> float | None:
        """Seconds from `now` to the next save."""
        if self.next_save_step is None:
            left = self.seconds(now)
            due = max(0.0, self.saved_at + self.save_interval - now)
            return due if left is None else min(due, left)
        return (self.next_save_step - self.at) * self._of_step() if self.of_steps else None

    def _of_step(self) -> float:
        return statistics.median(self.of_steps) * self.batch

    def _seconds(self) -> float:
        """Seconds from the end of the last step, or of its evaluation, to the end of the run."""
        intervals, recipe = self.run.recipe.intervals, self.run.recipe
        samples = (self.last_step - self.at) * self.batch
        if self.run.max_steps is None:  # in a ramp the batches are smaller
            samples = min(samples, max(0, recipe.train_samples - self.samples))
        steps = samples * statistics.median(self.of_steps)
        a_sample = _median(self.of_evaluations, statistics.median(self.of_steps) / 3)  # forward is a third of a step
        evaluations = self._planned(intervals.evaluate_every) * self.evaluated[0] + self.evaluated[1]
        planned = intervals.save_every
        saves = self._planned(planned) if planned else 1 + int(steps / self.save_interval)
        pauses = max(0, saves - 1) * _median(self.of_saves, 0.0)  # the last save is waited for
        tasks = self._planned(recipe.tasks.every_steps) if recipe.tasks.names else 0
        pauses += tasks * _median(self.of_tasks, 0.0)  # nobody knows how long, before they were done once
        return steps + evaluations * a_sample + pauses + min(saves, 1) * _median(self.of_writes, 0.0)

    def _planned(self, every: int) -> int:
        """How often something is still due that happens every so many steps and after the last one."""
        return -(-self.last_step // every) - self.at // every if self.at < self.last_step else 0


def _median(values: Sequence[float], otherwise: float) -> float:
    return float(statistics.median(values)) if values else otherwise
