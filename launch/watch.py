"""Tell a run that hangs from a slow one, and find the rank that the others wait for."""

import shutil
import statistics
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial

from launch.attempt import Fault
from launch.care import Care
from launch.death import signal_name
from launch.group import Launched, Rank
from planner.saving import saving
from run import members, rank_logs
from run.directory import Run
from run.feed import Feed, is_step
from support.json_object import JsonObject
from training import recorder
from training.presence import STACKS

STEP_SECONDS = 100.0  # that a step may take at least: a hang is found and its rank named within two minutes
MEDIANS = 3  # that a step may take, where that is more
START_SECONDS = 3600.0  # that ranks may take until they train
TASK_SECONDS = 3600.0  # that the tasks of a recipe may take, until it is known
SLOW_STORAGE = 5  # times what the planner says may a save take, until one was seen
LOOK_SECONDS = 1.0
STACK_SECONDS = 3.0  # that a rank has to write its stacks
WAITS = ("torch/distributed/", "deepspeed/comm/")  # files that stand in the stack of a rank that waits for others


class HangWatch:
    """Watches one launch of a run. `seconds` takes the place of what a step may take at least.

    `local` says whether all processes of the launch are seen from here. `care`, where it is given, tells whoever is to
    be told of ranks that are slow.
    """

    def __init__(
        self, run: Run, seconds: float | None, group: Launched, local: bool = True, care: Care | None = None
    ) -> None:
        self.care = care
        self.run, self.seconds, self.group = run, seconds or STEP_SECONDS, group
        self.feed = Feed(run.path)
        self.feed.new()  # what was before
        self.moved = self.looked = time.monotonic()
        self.training = False
        self.step, self.last_step = 0, 0
        self.steps: deque[float] = deque(maxlen=50)
        self.evaluated = self.scored = 0.0
        planned = saving(run.recipe, run.world_size).write_seconds
        self.saved = SLOW_STORAGE * planned  # what a save takes
        self.saves = False  # whether training waits for one
        self.local = local

    def hangs(self) -> Fault | None:
        """Ask this now and then; a fault, where the run hangs."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return None
        self.looked = now
        for happened in self.feed.new():
            self.moved = now
            self._take(happened)
        silent = now - self.moved
        if not self.training:
            idle = self.local and self.group.idle()
            return self._fault(silent, "start") if idle or silent > START_SECONDS else None
        return self._fault(silent, f"step {self.step + 1}") if silent > self._limit() else None

    def _take(self, happened: JsonObject) -> None:
        if happened.get("event") == "training":
            self.training, self.step, self.last_step = True, happened["step"], happened["last_step"]
        elif happened.get("event") in ("saving", "saved"):
            self.saved = happened.get("seconds", self.saved)
            self.saves = happened["event"] == "saving"
        elif happened.get("event") == "slow" and self.care:
            facts = {name: value for name, value in happened.items() if name not in ("event", "time")}
            # In a thread: it may take half a minute, and the ranks are watched meanwhile.
            tell = partial(self.care.tell, self.run.path, "slow", **facts)
            threading.Thread(target=tell, daemon=True).start()
        elif is_step(happened):
            self.step = happened["step"]
            self.steps.append(happened["seconds"])
        self.evaluated = max(self.evaluated, happened.get("evaluate_seconds", 0.0))
        self.scored = max(self.scored, happened.get("task_seconds", 0.0))

    def _limit(self) -> float:
        """What may go by until the next step, with the evaluation that is due before it and the save that it waits for.

        A checkpoint that is written while the run trains on gives a step no more time.
        """
        every, step = self.run.recipe.intervals, self.step + 1
        median = statistics.median(self.steps) if self.steps else 0.0
        limit = max(self.seconds, MEDIANS * median) if self.steps else max(self.seconds, STEP_SECONDS)
        if step % every.evaluate_every == 0 or step >= self.last_step:
            samples = every.final_samples if step > self.last_step else every.evaluate_samples
            forward = samples / self.run.engine.json["train_batch_size"] * median
            limit += 2 * max(forward, self.evaluated)
        if self.run.recipe.tasks.due(step, self.last_step):
            limit += max(TASK_SECONDS, 2 * self.scored)
        return limit + (2 * self.saved if self.saves else 0.0)

    def _fault(self, silent: float, where: str) -> Fault:
        """Have all ranks of this machine write their stacks, and name the one that does something else."""
        asked = recorder.ask(self.run.path, [rank.number for rank in self.group.living])
        for rank in self.group.living:
            rank.send(STACKS)
        until = time.monotonic() + STACK_SECONDS
        while time.monotonic() < until and not all(map(self._stack, self.group.living)):
            time.sleep(0.1)
        named, why = self._silent()
        node = next((rank.node for rank in self.group.living if rank.number == named), "")
        place = f" on node {node}" if node else ""
        who = "no rank stands out" if named is None else f"rank {named} of {self.group.world}{place} {why}"
        for rank in self.group.living:  # the next launch has a file of its own
            file = rank_logs.stacks_of(self.run.path, rank.number)
            with suppress(OSError):
                file.rename(file.with_suffix(f".step-{self.step + 1}.stacks"))
        kept = self.run.path / "logs" / f"*.step-{self.step + 1}.stacks"
        reason = f"the run hangs at {where}, for {silent:.0f} s: {who}; the stacks are in {kept}"
        traces = recorder.collected(self.run.path, asked, f"collectives.step-{self.step + 1}")
        return Fault("; ".join(filter(None, (reason, traces))), named)

    def _stack(self, rank: Rank) -> str:
        with suppress(OSError):
            return rank_logs.stacks_of(self.run.path, rank.number).read_text()
        return ""

    def _silent(self) -> tuple[int | None, str]:
        """The rank that the others wait for, and what is known of it."""
        living = self.group.living
        for rank in living:
            if rank.stopped:
                self._dump(rank)
                return rank.number, "is stopped (SIGSTOP, or a debugger)"
        stacks = {rank.number: self._stack(rank) for rank in living}
        mute = [number for number, stack in stacks.items() if not stack]
        if mute and len(mute) < len(living):
            return mute[0], f"does not answer {signal_name(STACKS)}"
        elsewhere = [number for number, stack in stacks.items() if not any(file in _main(stack) for file in WAITS)]
        if elsewhere and len(elsewhere) < len(living):
            return elsewhere[0], f"is busy elsewhere: {_top(stacks[elsewhere[0]])}"
        return self._late()

    def _late(self) -> tuple[int | None, str]:
        """The rank, on whichever machine, that has said for longer than the others that it lives."""
        ages = {}
        for file in (self.run.path / "ranks").glob("[0-9]*.json"):
            with suppress(OSError):
                ages[int(file.stem)] = file.stat().st_mtime
        if ages and max(ages.values()) - min(ages.values()) > 3 * members.BEAT_SECONDS:
            return min(ages, key=lambda number: ages[number]), "does not say any more that it lives"
        return None, ""

    def _dump(self, rank: Rank) -> None:
        """The stacks of a rank that cannot write them, where py-spy is there and may read them."""
        if rank.pid and (spy := shutil.which("py-spy")):
            with (
                suppress(OSError, subprocess.TimeoutExpired),
                open(rank_logs.stacks_of(self.run.path, rank.number), "ab") as stream,
            ):
                line = [spy, "dump", "--nonblocking", "--pid", str(rank.pid)]
                subprocess.run(line, stdout=stream, stderr=stream, timeout=STACK_SECONDS)


def _main(stacks: str) -> str:
    """The stack of the main thread: faulthandler writes it last."""
    return (
        stacks.rpartition("Thread 0x")[2] if "Current thread" not in stacks else stacks.partition("Current thread")[2]
    )


def _top(stacks: str) -> str:
    """Where the main thread is."""
    return next((line.strip() for line in _main(stacks).splitlines() if line.strip().startswith("File ")), "nowhere")
