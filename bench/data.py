"""Is preparing and reading data fast? Ours beside peers that do the same work in the same run.

`python -m bench.data` tokenises 16 MB of the Linux kernel's documentation with GPT-2's vocabulary, writes an index of
ten million documents, draws random samples and watches the memory of a long preparation. What is compared takes turns;
medians and ratios are printed. Peers that are not installed are left out and said so (tiktoken is not required).
gpt-neox and datatrove are not among the peers.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from commands import cli
from data.corpus import corpora
from data.samples.blend import Blend, shares
from data.samples.sampling import SampleOrder
from data.tokens import tokenisers
from data.tokens.encode import Judge
from data.tokens.shards import Shards, ShardWriter, write_index
from data.tokens.tasks import Job, Workers, tasks_of
from recipes.registry import ROOT, load
from support.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.pool import Pool
    from multiprocessing.queues import SimpleQueue

TEXT_BYTES = 16_000_000
DOCUMENTS = 10_000_000
SAMPLE, SAMPLES, STREAM = 2049, 512, 100_000_000
Row = tuple[str, float, str]  # a name, a figure, its unit
Order = Callable[[Path], Callable[[], object]]  # given a scratch folder, what is timed


# --- JSON lines to shards --------------------------------------------------------------------------------------------


def documentation(path: Path, num_bytes: int) -> float:
    """Write the Linux kernel's documentation as JSON lines; returns its text in MB."""
    size = 0
    with open(path, "w") as stream:
        for document in corpora.documents("linux-doc"):
            if size >= num_bytes:
                break
            size += len(document.text.encode())
            stream.write(json.dumps({"text": document.text}) + "\n")
    return size / 1e6


PREPARE = """
import sys
from pathlib import Path
from data.tokens.prepare import Options, prepare
if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], 60_000, Path(sys.argv[3]), options=Options(int(sys.argv[4])))
"""


def _started(code: str, scratch: Path, arguments: Sequence[object]) -> "subprocess.Popen[bytes]":
    """A Python process of its own; a file, because the processes that it starts read it too."""
    script = scratch / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _check_done(status: int) -> None:
    """A command that failed is fast; its time must not be reported."""
    if status:
        raise UserError(
            f"preparing ended with exit status {status}, so there is nothing to time; see its message above"
        )


class Tokenising:
    """Ways from JSON lines to token files, each a method that returns its seconds. All have their tokeniser loaded."""

    def __init__(self, source: Path, tokeniser: Path, out: Path, workers: int) -> None:
        self.source, self.tokeniser, self.out, self.workers = source, tokeniser, out, workers
        self.end = int(tokenisers.load(str(tokeniser)).eos_token_id)

    def ours(self, engine: str) -> float:
        """The shards of all splits, from processes that are ready as the peers' are."""
        folder = self.out / "ours"
        shutil.copytree(self.tokeniser, folder / "tokeniser")
        job = Job(folder, engine, 50_257, self.end, "")
        todo = [(task, "") for task in tasks_of(corpora.pieces(str(self.source)))]
        with Workers(job.tokeniser, engine, self.workers) as workers:
            while workers.counters["ready"] < self.workers:
                time.sleep(0.05)
            began = time.perf_counter()
            workers.do(todo, job)
            seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        return seconds

    def whole_command(self) -> float:
        """Ours with all that a user waits for: the interpreter, the tokeniser, the trial of engines, the processes."""
        folder, began = self.out / "command", time.perf_counter()
        with _started(PREPARE, self.out, [self.source, self.tokeniser, folder, self.workers]) as process:
            _check_done(process.wait())
        seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        return seconds

    def encode_batch_fast(self) -> float:
        """tokenizers alone: all texts in memory, one call, as many threads, nothing written."""
        texts = self._texts()
        judge = Judge(self.tokeniser)
        judge(["warm"])
        began = time.perf_counter()
        judge._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return time.perf_counter() - began

    def gigatoken(self) -> float:
        """gigatoken alone: it reads the JSON lines itself, with threads; nothing written."""
        import gigatoken

        encoder = gigatoken.Tokenizer(self.tokeniser / "tokenizer.json")
        files = gigatoken.JsonlFileSource([str(self.source)])
        encoder.encode_batch(["warm"])
        began = time.perf_counter()
        encoder.encode_files(files)
        return time.perf_counter() - began

    def datasets_map(self) -> float:
        """The datasets library's `map` in batches with processes, into its Arrow cache."""
        import datasets
        from transformers import AutoTokenizer

        tokeniser = AutoTokenizer.from_pretrained(str(self.tokeniser))
        cache = self.out / "arrow"
        rows = datasets.load_dataset("json", data_files=str(self.source), split="train", cache_dir=str(cache))
        began = time.perf_counter()
        rows.map(
            lambda batch: {"ids": tokeniser(batch["text"], add_special_tokens=False)["input_ids"]},
            batched=True, remove_columns=["text"], num_proc=self.workers, load_from_cache_file=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        shutil.rmtree(cache)
        return seconds

    def tiktoken(self) -> float:
        """As nanoGPT goes about it: tiktoken in processes, document by document, into one memory-mapped file."""
        began = time.perf_counter()
        with self._pool() as pool, open(self.source, "rb") as lines:
            found = list(pool.imap(_tiktoken_line, lines, 16))
        tokens = np.memmap(self.out / "tiktoken.bin", np.uint16, "w+", shape=(sum(map(len, found)),))
        tokens[:] = np.concatenate(found)
        tokens.flush()
        return time.perf_counter() - began

    def megatron(self) -> float:
        """As Megatron-LM goes about it: tokenizers in processes, by document, into an IndexedDatasetBuilder."""
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        began = time.perf_counter()
        builder = IndexedDatasetBuilder(str(self.out / "megatron.bin"), dtype=np.uint16)
        with self._pool() as pool, open(self.source, "rb") as lines:
            for ids in pool.imap(_tokenizers_line, lines, 32):
                builder.add_document(torch.IntTensor([*ids, self.end]), [len(ids) + 1])
        builder.finalize(str(self.out / "megatron.idx"))
        return time.perf_counter() - began

    def _pool(self) -> "Pool":
        return multiprocessing.get_context("fork").Pool(self.workers, _load_peers, (self.tokeniser, self.end))

    def _texts(self) -> list[str]:
        return [document.text for document in corpora.documents(str(self.source))]


_peers: dict[str, Any] = {}  # of a worker process


def _load_peers(tokeniser: Path, end: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _peers["tokenizers"] = Judge(tokeniser)._tokenizer
    if importlib.util.find_spec("tiktoken"):
        import tiktoken
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
        vocabulary = json.loads((tokeniser / "tokenizer.json").read_text())["model"]["vocab"]
        ranks = {bytes(letters[letter] for letter in entry): rank for entry, rank in vocabulary.items() if rank != end}
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        _peers["tiktoken"] = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        _peers["end"] = end


def _tiktoken_line(line: bytes) -> NDArray[np.uint16]:
    return np.array([*_peers["tiktoken"].encode_ordinary(json.loads(line)["text"]), _peers["end"]], np.uint16)


def _tokenizers_line(line: bytes) -> list[int]:
    ids: list[int] = _peers["tokenizers"].encode(json.loads(line)["text"], add_special_tokens=False).ids
    return ids


def tokenising(scratch: Path, rounds: int, workers: int) -> list[Row]:
    """MB of text a second of every way, the median of alternated rounds, more of them for the fast ones."""
    size = documentation(scratch / "docs.jsonl", TEXT_BYTES)
    ways = Tokenising(scratch / "docs.jsonl", scratch / "gpt2", scratch, workers)
    fast: dict[str, Callable[[], float]] = {
        "ours, gigatoken": lambda: ways.ours("gigatoken"),
        "gigatoken alone": ways.gigatoken,
        "ours, gigatoken, the whole command": ways.whole_command,
    }
    slow: dict[str, Callable[[], float]] = {
        "ours, tokenizers": lambda: ways.ours("tokenizers"),
        "encode_batch_fast alone": ways.encode_batch_fast,
        "datasets map": ways.datasets_map,
        "Megatron-LM's way": ways.megatron,
        **({"nanoGPT's way, tiktoken": ways.tiktoken} if importlib.util.find_spec("tiktoken") else {}),
    }
    seconds = alternate(fast, 3 * rounds) | alternate(slow, rounds)
    return [(name, size / statistics.median(each), "MB/s") for name, each in seconds.items()]


def alternate(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turns, so that a noisy minute falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with contextlib.redirect_stdout(sys.stderr):
                seconds[name].append(way())
    return seconds


# --- An index, samples, memory ---------------------------------------------------------------------------------------


def index(scratch: Path, rounds: int) -> list[Row]:
    """Seconds to write the index of ten million documents."""
    from megatron.core.datasets.indexed_dataset import DType, _IndexWriter

    lengths = np.random.default_rng(0).integers(10, 2000, DOCUMENTS, dtype=np.int32)
    as_list = lengths.tolist()  # as its builder holds them
    bounds = list(range(DOCUMENTS + 1))

    def theirs() -> float:
        began = time.perf_counter()
        with _IndexWriter(str(scratch / "theirs.idx"), np.uint16) as writer:
            writer.write(as_list, None, bounds)
        return time.perf_counter() - began

    def ours() -> float:
        began = time.perf_counter()
        write_index(scratch / "ours.idx", np.dtype(np.uint16), lengths)
        return time.perf_counter() - began

    assert DType.optimal_dtype(50257) is np.uint16
    seconds = alternate({"ours": ours, "megatron-core": theirs}, rounds)
    assert (scratch / "ours.idx").read_bytes() == (scratch / "theirs.idx").read_bytes()
    return [(name, statistics.median(each), "s") for name, each in seconds.items()]


def samples(scratch: Path, rounds: int) -> list[Row]:
    """Random samples of 2,048 tokens and their labels a second, one process, the page cache hot."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokens = np.random.default_rng(0).integers(0, 50_000, STREAM, dtype=np.uint16)
    with ShardWriter(scratch / "stream", 50_000) as writer:
        writer.add(tokens, np.full(STREAM // 1000, 1000))
    shards = Shards([scratch / "stream"])
    theirs = IndexedDataset(str(scratch / "stream"), mmap=True)
    whole = np.memmap(scratch / "stream.bin", np.uint16, "r")
    shards.read().sum()
    draw = np.random.default_rng(1)

    def timed(read: Callable[[NDArray[np.int64]], object]) -> Callable[[], float]:
        def way() -> float:
            starts = draw.integers(0, STREAM - SAMPLE, SAMPLES)
            began = time.perf_counter()
            read(starts)
            return time.perf_counter() - began

        return way

    def megatron(starts: NDArray[np.int64]) -> None:
        for start in starts.tolist():
            documents = range(start // 1000, (start + SAMPLE - 1) // 1000 + 1)
            parts = [theirs.get(number) for number in documents]
            np.concatenate(parts)[start % 1000 : start % 1000 + SAMPLE].astype(np.int64)

    ways = {
        "ours, int64": timed(lambda starts: shards.gather(starts, SAMPLE)),
        "ours, as stored": timed(lambda starts: shards.gather(starts, SAMPLE, dtype=None)),
        "fancy indexing": timed(lambda starts: whole[starts[:, None] + np.arange(SAMPLE)].astype(np.int64)),
        "megatron-core's IndexedDataset": timed(megatron),
    }
    return [(name, SAMPLES / statistics.median(each), "/s") for name, each in alternate(ways, 10 * rounds).items()]


MTNLG = tuple(part.weight for part in load("530b").data.parts)
BLENDED, ORDERED = 100_000_000, 10_000_000_000  # samples of a blend, tokens of a corpus
CHUNK = 1 << 14


def order(scratch: Path, rounds: int) -> list[Row]:
    """What it takes to know which sample comes when, of one corpus of 10^10 tokens: seconds, MB."""
    return _orders({"ours, every position": _our_index, "ours, first batch": partial(_our_index, most=512),
                    "megatron-core": _their_index}, scratch, rounds)  # fmt: skip


def blend(scratch: Path, rounds: int) -> list[Row]:
    """The same of a blend of 15 parts and 10^8 samples."""
    return _orders({"ours, every position": _our_blend, "ours, first batch": partial(_our_blend, most=512),
                    "megatron-core": _their_blend}, scratch, rounds)  # fmt: skip


def _orders(ways: dict[str, Order], scratch: Path, rounds: int) -> list[Row]:
    """megatron-core builds arrays and saves them; here a position is computed when it is wanted."""
    seconds = alternate({name: partial(_alone, way, scratch) for name, way in ways.items()}, rounds)
    rows = [(name, statistics.median(each), "s") for name, each in seconds.items()]
    return rows + [(name, max(1.0, _alone(way, scratch, peak=True)), "MB") for name, way in ways.items()]


def _alone(way: Order, scratch: Path, peak: bool = False) -> float:
    """Seconds, or the most MB, that an order takes in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measured, args=(way, scratch, queue))
    process.start()
    seconds, most = queue.get()
    process.join()
    return float(most if peak else seconds)


def _measured(way: Order, scratch: Path, queue: "SimpleQueue[tuple[float, float]]") -> None:
    import resource
    import warnings

    warnings.simplefilter("ignore")
    work = way(scratch)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    queue.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3))


def _our_index(scratch: Path, most: int = ORDERED) -> Callable[[], None]:
    def work() -> None:
        made = SampleOrder(ORDERED, SAMPLE - 1, seed=1)
        for first in range(0, min(made.samples_per_epoch, most), CHUNK):
            made.starts(np.arange(first, min(first + CHUNK, made.samples_per_epoch, most)))

    return work


def _our_blend(scratch: Path, most: int = BLENDED) -> Callable[[], None]:
    def work() -> None:
        made = Blend(shares(MTNLG))
        for first in range(0, most, CHUNK):
            made.place(np.arange(first, min(first + CHUNK, most)))

    return work


def _their_index(scratch: Path) -> Callable[[], None]:
    from megatron.core.datasets import helpers

    lengths = np.full(ORDERED // 1000, 1000, np.int32)

    def work() -> None:
        draw = np.random.RandomState(1)
        documents = np.arange(len(lengths), dtype=np.int32)
        draw.shuffle(documents)
        index = helpers.build_sample_idx(lengths, documents, SAMPLE - 1, 1, ORDERED)
        shuffled = np.arange(len(index) - 1, dtype=np.uint32)
        draw.shuffle(shuffled)
        for name, array in (("documents", documents), ("samples", index), ("shuffled", shuffled)):
            np.save(scratch / f"{name}.npy", array)

    return work


def _their_blend(scratch: Path) -> Callable[[], None]:
    from megatron.core.datasets import helpers

    def work() -> None:
        parts, places = np.zeros(BLENDED, np.int16), np.zeros(BLENDED, np.int64)
        helpers.build_blending_indices(parts, places, list(MTNLG), len(MTNLG), BLENDED, False)
        for name, array in (("parts", parts), ("places", places)):
            np.save(scratch / f"{name}.npy", array)

    return work


def memory(scratch: Path, gigabytes: float, workers: int) -> list[Row]:
    """The most memory that preparing so much text takes, over all its processes, in each quarter of the way."""
    text = [document.text.split(" ") for document in corpora.documents("linux-doc")]
    source, size, draw = scratch / "long.jsonl", 0, np.random.default_rng(0)
    letters = draw.integers(97, 123, 50_000_000, np.uint8).tobytes().decode()
    with open(source, "w") as stream:
        while size < gigabytes * 1e9:
            # New words all the time, as a web crawl has them: what remembers words must forget some.
            words = text[draw.integers(len(text))].copy()
            starts = draw.integers(0, len(letters) - 9, len(words) // 20).tolist()
            for place, start in zip(draw.integers(0, len(words), len(starts)).tolist(), starts, strict=True):
                words[place] = letters[start : start + 9]
            line = " ".join(words)
            size += len(line)
            stream.write(json.dumps({"text": line}) + "\n")
    began = time.perf_counter()
    with _started(PREPARE, scratch, [source, scratch / "gpt2", scratch / "long", workers]) as process:
        seen = list(_resident(process))
        _check_done(process.wait())
    seconds = time.perf_counter() - began
    quarters = [max(part) for part in np.array_split(seen, 4)]
    rows = [(f"quarter {number}", most / 1e6, "MB") for number, most in enumerate(quarters, 1)]
    return [*rows, (f"{gigabytes:g} GB of text", gigabytes * 1e3 / seconds, "MB/s")]


def _resident(process: "subprocess.Popen[bytes]") -> Iterator[int]:
    """Bytes that a process and its children hold by themselves, now and then (shared pages are counted in part)."""
    import psutil

    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            yield sum(member.memory_full_info().pss for member in family)
        time.sleep(0.2)


def show(values: dict[str, list[Row]]) -> None:
    """Print figures and ratios."""
    for name, rows in values.items():
        print(name)
        for label, figure, unit in rows:
            ours = next(row[1] for row in rows if row[2] == unit)
            print(f"  {label:40s} {figure:12,.2f} {unit:5s} {ours / figure:8.2f}")
    if not importlib.util.find_spec("tiktoken"):
        print("tiktoken is not installed here, so nanoGPT's way is left out")
    print("gpt-neox and datatrove are not measured")


def main() -> None:
    parser = cli.Parser("Measure preparing and reading data beside peers; print figures and ratios.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of text, to watch the memory of preparing")
    parser.add_argument("--only", nargs="+", choices=("tokenising", "index", "samples", "order", "blend", "memory"))
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> dict[str, dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            tokenisers.save(tokenisers.obtain("gpt2", []), scratch / "gpt2")
            parts: dict[str, Callable[[], list[Row]]] = {
                "tokenising": lambda: tokenising(scratch, args.rounds, args.workers),
                "index": lambda: index(scratch, args.rounds),
                "samples": lambda: samples(scratch, args.rounds),
                "order": lambda: order(scratch, args.rounds),
                "blend": lambda: blend(scratch, args.rounds),
                "memory": lambda: memory(scratch, args.gigabytes, args.workers),
            }
            values = {name: part() for name, part in parts.items() if name in (args.only or parts)}
        if not args.json:
            show(values)
        return {name: {f"{row[0]}, {row[2]}": row[1] for row in rows} for name, rows in values.items()}

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
