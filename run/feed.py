"""What happens to a run, as its files tell it: events and steps in one order."""

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from support.json_lines import Follower
from support.json_object import JsonObject


def is_step(happened: JsonObject) -> bool:
    """Whether this is a step. The evaluation after the last step has a line among the metrics, and no loss."""
    return "event" not in happened and "loss" in happened and "step" in happened


class Feed:
    """Reads a run directory while others write into it; it may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.events, self.metrics = Follower(path / "events.jsonl"), Follower(path / "metrics.jsonl")

    def new(self) -> list[JsonObject]:
        """What happened since the last call, oldest first: events have the key `event`, all else is of the metrics.

        Events are read first: so every step before a `saved` that is found is found too. A resumed run writes its
        metrics again without the steps that it will repeat. The steps that it keeps come again.
        """
        events = self.events.new()
        return list(_merged(events, self.metrics.new()))

    def close(self) -> None:
        """Let go of the files."""
        self.events.close()
        self.metrics.close()


def _merged(events: list[JsonObject], metrics: list[JsonObject]) -> Iterator[JsonObject]:
    """Both in the order of their times, each in the order of its file: a clock may be set back.

    What an event says of a step comes after the line of that step, and the steps of a start after its `training`,
    whatever the times are.
    """
    lines, begins = deque(metrics), list[float]()
    for event in reversed(events):  # the first step that a start at or after each event goes on from
        begin = _step(event) if event.get("event") == "training" else math.inf
        begins.append(min(begin, begins[-1] if begins else math.inf))
    for event, begin in zip(events, reversed(begins), strict=True):
        while lines and _step(lines[0]) <= begin:
            if _time(lines[0]) >= _time(event) and not ("step" in event and _step(lines[0]) <= _step(event)):
                break
            yield lines.popleft()
        yield event
    yield from lines


def _step(happened: JsonObject) -> float:
    """The step that an event or a line is about; the evaluation after the last one comes when it comes."""
    step = happened.get("step") if "event" in happened or is_step(happened) else None
    return step if isinstance(step, (int, float)) else math.inf if "event" not in happened else -math.inf


def _time(happened: JsonObject) -> float:
    return happened.get("time") or 0.0
