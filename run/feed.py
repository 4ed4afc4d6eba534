"""What happens to a run, as its files tell it: events and steps in one order."""

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
        return sorted(events + self.metrics.new(), key=lambda happened: happened.get("time") or 0.0)

    def close(self) -> None:
        """Let go of the files."""
        self.events.close()
        self.metrics.close()
