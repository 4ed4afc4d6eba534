"""Where a run is, from what its files tell. Draws nothing and imports no torch."""

import json
import socket
import statistics
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from run.directory import Run, read_data, read_run
from run.feed import Feed, is_step
from run.left import Left
from run.lines import slow
from run.status import CRASHED, ENDS
from support.errors import UserError
from support.files import is_locked
from support.json_object import JsonObject

RECENT = 50  # steps that speed is judged by
GOING = ("starting", "training", "evaluating", "stopping")


class Loss(NamedTuple):
    """A loss in nats a token after a step; None where it was not finite."""

    step: int
    loss: float | None


class State:
    """Takes what `Feed` finds, and says where the run is.

    `began` is when the command that starts the run began, seconds since 1970; a later `start` event moves it.
    """

    def __init__(self, path: Path, began: float) -> None:
        self.path, self.began = path, began
        self.run: Run | None = None
        self.parts: list[JsonObject] = []
        self.losses: list[Loss] = []
        self.validation: list[Loss] = []
        self.final: JsonObject | None = None
        self._begin({})

    def _begin(self, start: JsonObject) -> None:
        """A command starts the run, or starts it again."""
        self.start = start
        self.began = start.get("time", self.began)
        self.heard = self.began
        self.phases: list[tuple[str, float]] = []  # with the time of their beginning
        self.training_since = 0.0
        self.last_step = 0
        self.asked_to_stop = False
        self.end: JsonObject | None = None
        self.last: JsonObject = {}
        self.news: tuple[float, str] | None = None
        self.speeds: deque[float] = deque(maxlen=RECENT)
        self.skipped = 0
        self.slow: dict[tuple[int, str], str] = {}  # by rank and what it is slow at: the line that says so
        self.left: Left | None = None

    def take(self, happened: JsonObject) -> None:
        """Note an event or a line of the metrics."""
        self.heard = max(self.heard, happened.get("time") or 0.0)
        if "event" in happened:
            self._take_event(happened)
        elif is_step(happened):
            self._take_step(happened)
        elif "final_validation_loss" in happened:
            self.final = happened

    def _take_event(self, event: JsonObject) -> None:
        when = event.get("time", 0.0)
        match event["event"]:
            case "start":
                self._begin(event)
            case "phase":
                self.phases.append((event["phase"], when))
            case "training":
                self._open()
                self.training_since, self.last_step, self.end = when, event["last_step"], None
                self._forget_after(event["step"])
                if self.run:
                    self.left = Left(self.run, self.parts, self.last_step, event["step"], when)
            case "saved":
                if self.left:
                    self.left.saved(event)
                self.news = when, f"saved {Path(event['path']).name}"
            case "passed_over":
                self.news = when, f"passed over {Path(event['path']).name}: {event['reason']}"
            case "rollback":
                self.news = when, f"rolled back to step {event['to_step']}"
            case "said":
                self.news = when, event["line"]
            case "slow":
                self.news, who = (when, slow(event)), (event["rank"], event["what"])
                self.slow = {key: line for key, line in self.slow.items() if key != who}
                if event["times"] is not None:
                    self.slow[who] = self.news[1]
            case "fault":
                self.news = when, f"fault: {event['reason']}"
            case "restart":
                news = self.news
                self._begin({**self.start, "time": when})
                self.news = news
            case "stop":
                self.asked_to_stop = True
                self.news = when, "asked to stop"
            case "end":
                self.end = event
            case "note":
                self.news = when, f"note: {event['text']}"

    def _open(self) -> None:
        """Read what made the run. It is there when training begins, and may be there before."""
        with suppress(UserError, KeyError):
            self.run, self.parts = read_run(self.path), read_data(self.path)["parts"]

    def _take_step(self, step: JsonObject) -> None:
        number = step["step"]
        self._forget_after(number - 1)
        self.losses.append(Loss(number, step["loss"]))
        if "validation_loss" in step:
            self.validation.append(Loss(number, step["validation_loss"]))
        self.last = {**step, "memory_bytes": step.get("memory_bytes") or self.last.get("memory_bytes")}  # many: once
        self.skipped += bool(step.get("skipped"))
        if speed := step.get("tokens_per_second"):
            self.speeds.append(speed)
        if self.left:
            self.left.step(step)

    def _forget_after(self, step: int) -> None:
        """A resumed run takes steps again; what it measured before is void."""
        for losses in (self.losses, self.validation):
            while losses and losses[-1].step > step:
                losses.pop()
        if self.last.get("step", 0) > step:
            self.last = {}
        if self.final and self.final.get("step", 0) > step:
            self.final = None

    @property
    def status(self) -> str:
        """What the run does, or how it ended, in a word or two: one of `GOING`, or another."""
        if end := self._ended():
            return ENDS.get(end.get("status", -1), CRASHED)
        if self._gone():
            return CRASHED
        if self.asked_to_stop:
            return "stopping"
        if not self.training_since:
            return "starting"
        return "evaluating" if self.last.get("step") == self.last_step else "training"

    @property
    def over(self) -> bool:
        """Whether nothing more will come of this start."""
        return self.status not in GOING

    def _ended(self) -> JsonObject | None:
        """The end that was noted: as an event, or by the ranks alone."""
        file = self.path / "status.json"
        if self.end is None:
            with suppress(OSError, ValueError):
                if (noted := file.stat().st_mtime) >= self.began:
                    self.end = {"time": noted, **json.loads(file.read_text())}
        return self.end

    def _gone(self) -> bool:
        """Whether the command and its ranks have ended and noted no end. Locks of other machines may not reach here."""
        return self.start.get("host") == socket.gethostname() and not is_locked(self.path / ".lock")

    def value(self, now: float) -> JsonObject:
        """Where the run is at `now`, seconds since 1970; docs/json.md has the keys. What is not known is null."""
        if self.run is None:
            self._open()
        status, end = self.status, self.end
        going = status in GOING
        until = now if going else end["time"] if end else self.heard
        last, run = self.last, self.run
        known = [loss for loss in self.validation if loss.loss is not None]
        best = min(known, key=lambda each: each.loss or 0.0) if known else None
        left = self.left if going else None
        samples = last.get("consumed_samples")
        return {
            "run": str(self.path),
            "recipe": run.recipe.name if run else None,
            "status": status,
            "reason": end.get("reason") or None if end else None,
            "ranks": run.world_size if run else None,
            "phases": self._phase_seconds(until),
            "seconds": max(0.0, until - self.began),  # a clock may have been set back
            "silent_seconds": max(0.0, now - self.heard) if going else None,
            "step": last.get("step"),
            "last_step": self.last_step or None,
            "tokens": samples * run.recipe.model.seq_length if run and samples is not None else None,
            "train_tokens": run.recipe.schedule.train_tokens if run else None,
            "loss": last.get("loss"),
            "validation_loss": self.validation[-1].loss if self.validation else None,
            "validation_step": self.validation[-1].step if self.validation else None,
            "best_validation_loss": best.loss if best else None,
            "best_validation_step": best.step if best else None,
            "final_validation_loss": self.final["final_validation_loss"] if self.final else None,
            **{name: last.get(name) for name in ("lr", "grad_norm", "loss_scale", "mfu")},
            "skipped": self.skipped,
            "tokens_per_second": statistics.median(self.speeds) if self.speeds else None,
            "memory_bytes": last.get("memory_bytes"),
            "parts": self._parts(),
            "slow_ranks": list(self.slow.values()) if going else [],
            "seconds_left": left.seconds(now) if left else None,
            "next_save_step": left.next_save_step if left else None,
            "seconds_to_save": left.seconds_to_save(now) if left else None,
            "last_event": self.news[1] if self.news else None,
            "last_event_time": self.news[0] if self.news else None,
        }

    def _phase_seconds(self, until: float) -> list[JsonObject]:
        """The phases of the start, each until the next one began; before the first of them it checks what was given."""
        begun = self.phases
        if not begun or begun[0][1] - self.began > 0.1:
            begun = [("checks", self.began), *begun]
        ends = [*(next_one for _, next_one in begun[1:]), self.training_since or until]
        return [
            {"phase": phase, "seconds": max(0.0, end - start)} for (phase, start), end in zip(begun, ends, strict=True)
        ]

    def _parts(self) -> list[JsonObject]:
        """How much was read of each part of the data: samples, and how often all of its text."""
        if not self.run or not self.parts or "consumed_samples" not in self.last:
            return []
        length, total = self.run.recipe.model.seq_length, sum(part["share"] for part in self.parts)
        by_share = [self.last["consumed_samples"] * part["share"] / total for part in self.parts]
        samples = self.last.get("samples_by_part") or by_share
        return [
            {"corpus": part["corpus"], "samples": round(read), "epochs": read * length / part["train"]["tokens"]}
            for part, read in zip(self.parts, samples, strict=False)
        ]


def state_of(path: Path) -> State:
    """Where the run in the directory `path` is, by all that its files tell now."""
    state, feed = State(path, began_at(path)), Feed(path)
    for happened in feed.new():
        state.take(happened)
    feed.close()
    return state


def began_at(path: Path) -> float:
    """When a run was started last, for what was started before there were events."""
    file = path / "start.json"
    return file.stat().st_mtime if file.exists() else time.time()
