"""The work of preparing, cut into tasks, and the processes that do them.

A task is some pieces of a corpus, read, encoded and written as shards of its own by one process. What the tasks are
depends on the corpus alone; so the shards are the same for any number of processes, and after an interruption only the
tasks that were not finished are done again. A task is finished when its record exists.
"""

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.corpus.corpora import hold_out_end, split_of
from data.corpus.sources import SPLITS, Document, Piece, Problems, piece_bytes, read_pieces
from data.tokens.encode import ENGINES, Encoder, Tokens
from data.tokens.shards import ShardWriter
from support.files import enough_room, write_json
from support.workers import Pool

BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 4096  # encoded together
SHARD_TOKENS = 1 << 30


@dataclass(frozen=True)
class Task:
    """Pieces that make shards of their own. `hold_out` is as `hold_out_end` takes it, where no split has validation."""

    number: int
    pieces: tuple[Piece, ...]
    hold_out: tuple[int, int, bool] | None = None

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    def identity(self) -> list[object]:
        """What its shards depend on, besides the job."""
        return [[piece.identity() for piece in self.pieces], self.hold_out]

    def documents(self, problems: Problems) -> Iterator[Document]:
        documents = read_pieces(self.pieces, problems)
        return hold_out_end(documents, *self.hold_out) if self.hold_out else documents


def tasks_of(pieces: Sequence[Piece]) -> list[Task]:
    """Neighbouring pieces together, until there is enough to be worth a shard."""
    enough = piece_bytes(sum(piece.num_bytes for piece in pieces))
    groups: list[list[Piece]] = []
    held = enough
    for piece in pieces:
        if held >= enough:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.num_bytes
    return [Task(number, tuple(group)) for number, group in enumerate(groups)]


@dataclass(frozen=True)
class Job:
    """What all tasks share: where the shards go, and how documents become tokens."""

    folder: Path
    engine: str
    vocab_size: int
    end_of_document: int
    vocabulary_sha256: str
    skip: bool = False
    shard_tokens: int = SHARD_TOKENS

    @property
    def tokeniser(self) -> Path:
        return self.folder / "tokeniser"

    def record_path(self, task: Task) -> Path:
        return self.folder / f"task-{task.number:05d}.json"


@dataclass(frozen=True)
class Progress:
    """How far a job is: text in bytes (the total is a guess for packed files), and the seconds since it began."""

    done_bytes: int
    total_bytes: int
    text_bytes: int
    documents: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        rate = self.text_bytes / self.seconds if self.seconds else 0.0
        left = (self.total_bytes - self.done_bytes) / (self.done_bytes / self.seconds) if self.done_bytes else 0.0
        return (
            f"tokenised {self.documents:,} documents, {self.text_bytes / 1e6:,.1f} MB, "
            f"{self.tokens / 1e6:,.1f} M tokens, {rate / 1e6:,.1f} MB/s, {int(left) // 60}:{int(left) % 60:02d} left"
        )


class Stopped(Exception):  # noqa: N818
    """Another process met an error."""


# --- One task --------------------------------------------------------------------------------------------------------


class Counters:
    """Numbers that all processes of a job share."""

    NAMES = ("done", "text", "documents", "tokens", "ready", "stop")

    def __init__(self, context: Any) -> None:
        self._array = context.Array(ctypes.c_int64, len(self.NAMES))

    def add(self, **amounts: int) -> None:
        with self._array.get_lock():
            for name, amount in amounts.items():
                self._array[self.NAMES.index(name)] += amount

    def __getitem__(self, name: str) -> int:
        return int(self._array[self.NAMES.index(name)])


@dataclass
class SplitShards:
    """The shards that one task writes of one split, each at most about `shard_tokens` long."""

    job: Job
    stem: str
    open_shards: ExitStack
    shards: list[dict[str, Any]] = field(default_factory=list)
    writer: ShardWriter | None = None
    num_bytes: int = 0

    def add(self, tokens: Tokens, lengths: Tokens, num_bytes: int) -> None:
        if self.writer is None:
            prefix = self.job.folder / f"{self.stem}-{len(self.shards):02d}"
            self.writer = self.open_shards.enter_context(ShardWriter(prefix, self.job.vocab_size))
        self.writer.add(tokens, lengths)
        self.num_bytes += num_bytes
        if self.writer.num_tokens >= self.job.shard_tokens:
            self.finish()

    def finish(self) -> None:
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        writer.finish()
        self.shards.append(
            {
                "name": writer.prefix.name,
                "documents": writer.num_documents,
                "bytes": self.num_bytes,
                "tokens": writer.num_tokens,
                "sha256": writer.sha256,
            }
        )
        self.num_bytes = 0


def do_task(
    task: Task, job: Job, encoder: Encoder, counters: Counters, fingerprint: str, tick: Callable[[], None] | None = None
) -> None:
    """Read, encode and write the documents of a task; its record is written last. `tick` is called now and then.

    Errors: `UserError` for input that cannot be read, and where the disk is full.
    """
    problems = Problems(job.skip)
    done = 0
    with enough_room(job.folder):
        with ExitStack() as open_shards:
            parts = {split: SplitShards(job, f"{split}-{task.number:05d}", open_shards) for split in SPLITS}
            for batch in _batches(task.documents(problems), problems):
                size = sum(len(raw) for _, raw in batch)
                tokens = _encode(batch, parts, job, encoder)
                step = min(size, task.num_bytes - done)
                done += step
                counters.add(done=step, text=size, documents=len(batch), tokens=tokens)
                if counters["stop"]:
                    raise Stopped
                if tick:
                    tick()
            for part in parts.values():
                part.finish()
        counters.add(done=task.num_bytes - done)
        record = {
            "fingerprint": fingerprint,
            "skipped": dict(problems.counts),
            "first": problems.first,
            "engine": encoder.name,
            **{split: part.shards for split, part in parts.items()},
        }
        write_json(job.record_path(task), record)


def _batches(documents: Iterator[Document], problems: Problems) -> Iterator[list[tuple[Document, bytes]]]:
    """Documents with their UTF-8, so many that encoding them together pays."""
    batch: list[tuple[Document, bytes]] = []
    size = 0
    for document in documents:
        try:
            raw = document.text.encode()
        except UnicodeEncodeError:
            problems.report("not UTF-8", f"document {document.name} has half a surrogate pair; mend its text")
            continue
        batch.append((document, raw))
        size += len(raw)
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[tuple[Document, bytes]], parts: dict[str, SplitShards], job: Job, encoder: Encoder) -> int:
    """Encode a batch, close every document, hand each split its own; returns the number of tokens."""
    found, lengths = encoder([document.text for document, _ in batch])
    tokens = np.insert(found, np.cumsum(lengths), job.end_of_document)
    lengths = lengths + 1
    splits = np.array([SPLITS.index(split_of(document, raw)) for document, raw in batch])
    sizes = np.array([len(raw) for _, raw in batch])
    for number, split in enumerate(SPLITS):
        mine = splits == number
        if mine.all():
            parts[split].add(tokens, lengths, int(sizes.sum()))
        elif mine.any():
            parts[split].add(tokens[np.repeat(mine, lengths)], lengths[mine], int(sizes[mine].sum()))
    return len(tokens)


# --- All of them -----------------------------------------------------------------------------------------------------

_encoders: dict[str, Encoder] = {}  # of this process
_counters: Counters | None = None  # of a worker process


class Workers:
    """Processes that do tasks, this one where one is enough. They start and load their engine while the caller goes on.

    Use as a context manager.
    """

    def __init__(self, tokeniser: Path, engine: str, count: int) -> None:
        self.counters = Counters(multiprocessing.get_context("spawn"))
        self._pool = Pool(count, _start_worker, tokeniser, engine, self.counters)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exit_facts: object) -> None:
        self.counters.add(stop=1)  # tasks that are being done end at their next batch
        self._pool.__exit__(*exit_facts)

    def do(self, tasks: Sequence[tuple[Task, str]], job: Job, report: Callable[[Progress], None] | None = None) -> None:
        """Do tasks, each with its fingerprint, and report now and then.

        Errors: `UserError` as `do_task`, from the first that fails; what is finished stays.
        """
        total, began = sum(task.num_bytes for task, _ in tasks), time.monotonic()

        def tell() -> None:
            if report:
                done, text, documents, tokens = (self.counters[name] for name in Counters.NAMES[:4])
                report(Progress(done, total, text, documents, tokens, time.monotonic() - began))

        if self._pool.count == 1:  # here `tell` is called within a task
            for task, fingerprint in tasks:
                do_task(task, job, _encoder(job.engine, job.tokeniser), self.counters, fingerprint, tell)
            return
        for _ in self._pool.run(partial(_work, job), tasks, len(tasks), tell):
            pass  # a task leaves shards and a record behind; it returns nothing


def _encoder(engine: str, tokeniser: Path) -> Encoder:
    key = f"{engine} {tokeniser}"
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = ENGINES[engine](tokeniser)
    return _encoders[key]


def _start_worker(tokeniser: Path, engine: str, counters: Counters) -> None:
    global _counters
    _counters = counters
    try:
        _encoder(engine, tokeniser)(["warm"])
    except Exception:  # it is loaded again for the first task, which says what is wrong
        _encoders.clear()
    counters.add(ready=1)


def _work(job: Job, given: tuple[Task, str]) -> None:
    assert _counters
    task, fingerprint = given
    do_task(task, job, _encoder(job.engine, job.tokeniser), _counters, fingerprint)
