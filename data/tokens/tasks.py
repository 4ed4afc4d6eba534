"""The work of preparing, cut into tasks, and the processes that do them.

A task is some pieces of a corpus. One process reads them, encodes them and writes them as shards of their own. What the
tasks are depends on the corpus alone. So the shards are the same for any number of processes, and after an interruption
only the tasks that were not finished are done again. A task is finished when its record exists.
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

from data.corpus.examples import Form
from data.corpus.sources import SPLITS, Document, Piece, Problems, piece_bytes, read_pieces
from data.corpus.splitting import hold_out_end, split_of
from data.tokens.encode import ENGINES, Encoder, Tokens
from data.tokens.examples import Weights, fitting
from data.tokens.shards import ShardWriter
from support.files import enough_room, write_json
from support.json_object import JsonObject
from support.workers import Pool

BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 4096  # as much is encoded in one call
SHARD_TOKENS = 1 << 30  # of a shard, about; 2 or 4 GiB


@dataclass(frozen=True)
class Task:
    """Pieces that make shards of their own.

    `hold_out` are the arguments of `hold_out_end`, or None: only where no document falls to validation are they needed.
    """

    number: int
    pieces: tuple[Piece, ...]
    hold_out: tuple[int, int, bool] | None = None

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    def identity(self) -> list[object]:
        """All that its shards depend on, beside the job."""
        return [[piece.identity() for piece in self.pieces], self.hold_out]

    def documents(
        self, problems: Problems, fitting: Callable[[Iterator[Document]], Iterator[Document]] = iter
    ) -> Iterator[Document]:
        """Its documents. What is held out is counted among those that `fitting` lets through, and others are gone."""
        documents = read_pieces(self.pieces, problems)
        return hold_out_end(fitting(documents), *self.hold_out) if self.hold_out else documents


def tasks_of(pieces: Sequence[Piece]) -> list[Task]:
    """Put neighbouring pieces together until they are worth a shard: a million small files make no million shards."""
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
    form: Form | None = None  # of examples to tune on

    @property
    def tokeniser(self) -> Path:
        return self.folder / "tokeniser"

    def record_path(self, task: Task) -> Path:
        return self.folder / f"task-{task.number:05d}.json"


@dataclass(frozen=True)
class Progress:
    """How far a job is, in bytes of text, documents and tokens, and the seconds since it began.

    `total_bytes` is a guess where files are packed. `done_bytes` fits to it and serves to guess the time that is left;
    `text_bytes` is the text that was really encoded.
    """

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
    """This process ends its task early, because another one met an error."""


# --- One task --------------------------------------------------------------------------------------------------------


class Counters:
    """Numbers in shared memory, which all processes of a job add to."""

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
    """The shards that one task writes for one split. Each holds about `shard_tokens` tokens at most."""

    job: Job
    stem: str
    open_shards: ExitStack
    shards: list[JsonObject] = field(default_factory=list)
    writer: ShardWriter | None = None
    num_bytes: int = 0
    answer_bytes: int = 0  # of examples

    def add(
        self, tokens: Tokens, lengths: Tokens, num_bytes: int, weights: Weights | None = None, answer_bytes: int = 0
    ) -> None:
        if self.writer is None:
            prefix = self.job.folder / f"{self.stem}-{len(self.shards):02d}"
            weighted = self.job.form is not None
            self.writer = self.open_shards.enter_context(ShardWriter(prefix, self.job.vocab_size, weighted))
        self.writer.add(tokens, lengths, weights)
        self.num_bytes += num_bytes
        self.answer_bytes += answer_bytes
        if self.writer.num_tokens >= self.job.shard_tokens:
            self.finish()

    def finish(self) -> None:
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        writer.finish()
        facts = {
            "name": writer.prefix.name,
            "documents": writer.num_documents,
            "bytes": self.num_bytes,
            "tokens": writer.num_tokens,
            "sha256": writer.sha256,
        }
        own = {
            "answer_bytes": self.answer_bytes,
            "answer_tokens": writer.answer_tokens,
            "weights_sha256": writer.weights_sha256,
        }
        self.shards.append(facts | own if self.job.form else facts)
        self.num_bytes = self.answer_bytes = 0


def do_task(
    task: Task, job: Job, encoder: Encoder, counters: Counters, fingerprint: str, tick: Callable[[], None] | None = None
) -> None:
    """Read, encode and write the documents of a task, then write its record. `tick` is called after every batch.

    Errors: `UserError` for input that cannot be read, and where the disk is full.
    """
    problems = Problems(job.skip)
    done = 0
    with enough_room(job.folder):
        with ExitStack() as open_shards:
            outputs = {split: SplitShards(job, f"{split}-{task.number:05d}", open_shards) for split in SPLITS}
            short = partial(_fitting, job=job, encoder=encoder, problems=problems) if job.form else iter
            for batch in _batches(task.documents(problems, short), problems):
                size = sum(len(raw) for _, raw in batch)
                tokens = _encode(batch, outputs, job, encoder, problems)
                step = min(size, task.num_bytes - done)
                done += step
                counters.add(done=step, text=size, documents=len(batch), tokens=tokens)
                if counters["stop"]:
                    raise Stopped
                if tick:
                    tick()
            for output in outputs.values():
                output.finish()
        counters.add(done=task.num_bytes - done)  # the size of a packed file was a guess; now it is done
        record = {
            "fingerprint": fingerprint,
            "skipped": dict(problems.counts),
            "first": problems.first,
            **({"left_out": problems.left_out} if job.form else {}),
            "engine": encoder.name,
            **{split: output.shards for split, output in outputs.items()},
        }
        write_json(job.record_path(task), record)


def _fitting(documents: Iterator[Document], job: Job, encoder: Encoder, problems: Problems) -> Iterator[Document]:
    """The examples that fit into a sample."""
    assert job.form
    for document in documents:
        if fitting([document], encoder, job.tokeniser, job.end_of_document, job.form, problems)[0]:
            yield document


def _batches(documents: Iterator[Document], problems: Problems) -> Iterator[list[tuple[Document, bytes]]]:
    """Documents with their UTF-8, in batches that are large enough to be encoded fast."""
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


def _encode(
    batch: list[tuple[Document, bytes]],
    outputs: dict[str, SplitShards],
    job: Job,
    encoder: Encoder,
    problems: Problems,
) -> int:
    """Encode a batch, end each document, and give every split its documents. Returns the number of tokens."""
    weights: Weights | None = None
    if job.form:
        documents, rules = [document for document, _ in batch], (job.end_of_document, job.form, problems)
        kept, tokens, lengths, weights = fitting(documents, encoder, job.tokeniser, *rules)
        batch = [batch[number] for number in kept]
    else:
        found, lengths = encoder([document.text for document, _ in batch])
        tokens = np.insert(found, np.cumsum(lengths), job.end_of_document)
        lengths = lengths + 1
    splits = np.array([SPLITS.index(split_of(document, raw)) for document, raw in batch], np.int64)
    sizes = np.array([len(raw) for _, raw in batch], np.int64)
    answers = np.array([document.answer_bytes for document, _ in batch], np.int64)
    for number, split in enumerate(SPLITS):
        mine = splits == number
        if not mine.any():
            continue
        each = np.repeat(mine, lengths)
        facts = (lengths[mine], int(sizes[mine].sum()), None if weights is None else weights[each])
        outputs[split].add(tokens if mine.all() else tokens[each], *facts, int(answers[mine].sum()))
    return len(tokens)


# --- All of them -----------------------------------------------------------------------------------------------------

_encoders: dict[str, Encoder] = {}  # of this process
_counters: Counters | None = None  # of a worker process


class Workers:
    """Processes that do tasks, or this process where `count` is 1. They load their engine while the caller goes on.

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

        Errors: that of the first task that fails, as `do_task`. What is finished stays.
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
    except Exception:  # an error here would break the pool without a reason; the first task meets it again and says it
        _encoders.clear()
    counters.add(ready=1)


def _work(job: Job, given: tuple[Task, str]) -> None:
    assert _counters
    task, fingerprint = given
    do_task(task, job, _encoder(job.engine, job.tokeniser), _counters, fingerprint)
