"""What cleaning did: counts by stage and rule, and a uniform sample of what each stage dropped or changed."""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash

from data.corpus.document import utf8_bytes
from support.json_object import JsonObject

SAMPLES = 50  # of each stage
SAMPLE_CHARACTERS = 2000  # of each sample


@dataclass
class Count:
    """What one stage did, with samples of it as (key, record).

    A key is a hash, and the samples with the lowest keys stay. So they are a uniform sample, and the same one whatever
    the order in which the documents come.
    """

    dropped: int = 0
    changed: int = 0
    bytes_removed: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def note(self, name: str, rule: str, detail: Callable[[], str], text: str) -> None:
        """Offer a sample. `text` is the text that was dropped, or what a change removed or repaired in it."""
        key = xxhash.xxh3_64_intdigest(f"{name}\n{text[:SAMPLE_CHARACTERS]}".encode())
        if len(self.samples) >= SAMPLES and key > max(key for key, _ in self.samples):
            return
        record = {"name": name, "rule": rule, "detail": detail(), "text": text[:SAMPLE_CHARACTERS]}
        self.samples.append((key, record))
        if len(self.samples) > 4 * SAMPLES:  # not at each one: finding the lowest takes longer than keeping a few more
            self.thin()

    def thin(self) -> None:
        """Keep the samples with the lowest keys."""
        self.samples = heapq.nsmallest(SAMPLES, self.samples, key=lambda sample: (sample[0], sample[1]["name"]))

    def add(self, other: "Count") -> None:
        """Add what the same stage did to other documents."""
        self.dropped += other.dropped
        self.changed += other.changed
        self.bytes_removed += other.bytes_removed
        self.rules.update(other.rules)
        self.samples += other.samples
        self.thin()


@dataclass
class Tally:
    """What all stages did to some documents."""

    documents: int = 0
    bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    stages: dict[str, Count] = field(default_factory=dict)

    def drop(self, stage: str, name: str, text: str, rule: str, detail: Callable[[], str]) -> None:
        """Count a document that a stage dropped. `detail` is called only if the document becomes a sample."""
        count = self.stages.setdefault(stage, Count())
        count.dropped += 1
        count.bytes_removed += utf8_bytes(text)
        count.rules[rule] += 1
        count.note(name, rule, detail, text)

    def change(self, stage: str, name: str, removed_bytes: int, what: str) -> None:
        """Count a document that a stage changed. `what` is text that the change removed or repaired."""
        count = self.stages.setdefault(stage, Count())
        count.changed += 1
        count.bytes_removed += removed_bytes
        count.note(name, "changed", str, what)

    def add(self, other: "Tally") -> None:
        """Add what happened to other documents."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.kept += other.kept
        self.kept_bytes += other.kept_bytes
        for stage, count in other.stages.items():
            self.stages.setdefault(stage, Count()).add(count)

    def to_dict(self) -> JsonObject:
        """JSON form, from which `from_dict` makes an equal one."""
        for count in self.stages.values():
            count.thin()
        return {**vars(self), "stages": {stage: vars(count) for stage, count in self.stages.items()}}

    @classmethod
    def from_dict(cls, values: JsonObject) -> "Tally":
        """The tally that `to_dict` was called on."""
        stages = {
            stage: Count(
                **{**count, "rules": Counter(count["rules"]), "samples": [(k, r) for k, r in count["samples"]]}
            )
            for stage, count in values["stages"].items()
        }
        return cls(**{**values, "stages": stages})
