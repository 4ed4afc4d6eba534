"""From a corpus to shards: tokenise every document, append its end-of-document token, write `.bin`/`.idx`.

A prepared folder holds `tokeniser/`, the shards of each split and, written last, `manifest.json` with what it was made
from, its counts and the fingerprints of its shards. While it is made it is called `….partial` and holds the shards and
records of the tasks that are finished. If the work is interrupted, the same command goes on from there.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.corpus import corpora
from data.corpus.examples import Form
from data.corpus.fetch import file_sha256
from data.corpus.named import CORPORA
from data.corpus.sources import SPLITS, Problems
from data.corpus.splitting import split_of
from data.tokens import encode
from data.tokens.beside import Beside
from data.tokens.shards import WEIGHTS, Shards, digest, token_dtype, with_suffix
from data.tokens.tasks import SHARD_TOKENS, Job, Progress, Task, Workers, tasks_of
from support.errors import UserError
from support.files import PARTIAL, enough_room, give_name, locked, whole_folder, write, write_json
from support.json_object import JsonObject
from support.terminal import Say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENISER_SAMPLE_CHARACTERS = 100_000_000  # a BPE is trained on at most this much of a corpus
# How much is held out of a corpus of which nothing falls to validation: it is small, or its source has splits, but no
# such split. A few million tokens are enough to validate on.
HELD_OUT_SHARE, MOST_HELD_OUT_BYTES = 0.05, 100_000_000
TRIAL_SHARE, MOST_TRIAL_BYTES = 0.005, 2_000_000  # how much of a corpus the engines are compared on
TRIAL_PIECES = 16  # from so many places of the corpus


class OthersUnfinished(UserError):  # noqa: N818
    """This node has done its tasks, and other nodes have not done theirs."""


@dataclass(frozen=True)
class Options:
    """How the work is done. Only `skip` (where input is bad) and `shard_tokens` can change a byte of the shards.

    `nodes` machines share the tasks, and this is number `node` of them. `workers` are processes; 0 means one a core.
    `skip` says what happens to input that cannot be read: with True it is skipped and counted, with False it is an
    error. With None it is an error too, but an existing folder that lacks such input is taken.
    """

    workers: int = 0
    nodes: int = 1
    node: int = 0
    skip: bool | None = None
    engine: str = "auto"
    shard_tokens: int = SHARD_TOKENS
    report: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}; it must be at least 1, or 0 for one a core")
        if not 0 <= self.node < self.nodes:
            raise UserError(f"--node is {self.node} of --nodes {self.nodes}; it must be from 0 to {self.nodes - 1}")

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def prepare(
    corpus: str,
    tokeniser: str,
    vocab_size: int,
    root: Path,
    say: Say = lambda line: None,
    options: Options | None = None,
    form: Form | None = None,
) -> Path:
    """Make sure that a corpus is prepared with a tokeniser below `root`; return its folder.

    `vocab_size` is how many entries the model has room for. With a `form` the rows of the corpus are examples to tune
    on, and their shards are weighted. Does nothing where the folder is whole and its local
    sources are unchanged. Safe when several processes arrive together: the first does the work, the others wait.
    Errors: `UserError` where the corpus cannot be read or the tokeniser has more entries than `vocab_size`;
    `OthersUnfinished` where this is one of several nodes and not the last to finish.
    """
    options = options or Options()
    source = _source(corpus, tokeniser, form)
    slug, whole, lacking = _folders(source, root)
    accepted = [whole] if options.skip is False else [whole, lacking]
    if not _made(accepted):
        # The name of the scratch folder does not depend on the state of the files: when a bad file is mended, the
        # tasks of the other files, which were finished before, are still good.
        unfinished = {key: value for key, value in source.items() if key != "files"}
        scratch = root / f"{slug}-{_short_hash(unfinished)}{PARTIAL}"
        with enough_room(scratch), locked(root / f".{scratch.stem}-{options.node}-of-{options.nodes}.lock"):
            if not _made(accepted):
                _Preparation(
                    corpus, tokeniser, vocab_size, form, source, scratch, whole, lacking, accepted, say, options
                ).run()
    folder = _made(accepted)
    assert folder
    _check_vocabulary(tokeniser, manifest(folder)["vocab_size"], vocab_size)
    return folder


def found(corpus: str, tokeniser: str, root: Path, form: Form | None = None) -> Path | None:
    """The folder of a corpus that is prepared with a tokeniser below `root`; None where there is none. Writes nothing.

    Errors: `UserError` where the corpus cannot be found.
    """
    return _made(_folders(_source(corpus, tokeniser, form), root)[1:])


def _folders(source: JsonObject, root: Path) -> tuple[str, Path, Path]:
    """The beginning of the names, and the two folders that a corpus can be prepared in.

    A folder that lacks what was skipped has a name of its own, so that a call that skips nothing does not take it.
    """
    slug = re.sub(r"[^\w.-]+", "-", f"{Path(source['corpus']).name}-{Path(source['tokeniser']).name}").strip("-")
    whole, lacking = (root / f"{slug}-{_short_hash(each)}" for each in (source, {**source, "skipped": True}))
    return slug, whole, lacking


def _made(folders: Sequence[Path]) -> Path | None:
    """The first of the folders that is there."""
    return next((folder for folder in folders if (folder / "manifest.json").exists()), None)


def shared_tokeniser(
    names: Sequence[str], spec: str, root: Path, say: Say = lambda line: None, skip: bool | None = False
) -> str:
    """A tokeniser for several corpora: `spec` itself, or the folder of one that was trained on all of them."""
    tokeniser = tokeniser_of(names, spec, root)
    if tokeniser == spec:
        return spec
    folder = Path(tokeniser)
    with enough_room(folder), locked(root / f".{folder.name}.lock"):
        if not folder.exists():
            say(f"tokeniser: {spec} of {len(names)} corpora")
            budget = TOKENISER_SAMPLE_CHARACTERS // len(names)
            texts = (text for name in names for text in _training_texts(name, budget, skip))
            _save_tokeniser(spec, texts, folder, say)
    return str(folder)


def tokeniser_of(names: Sequence[str], spec: str, root: Path) -> str:
    """What `shared_tokeniser` returns, whether or not it is there."""
    if len(names) == 1 or not spec.startswith("bpe:"):
        return spec
    return str(root / f"tokeniser-{spec.replace(':', '-')}-{_short_hash([_source(name, spec) for name in names])}")


def _save_tokeniser(spec: str, texts: Iterable[str], folder: Path, say: Say) -> "PreTrainedTokenizerFast":
    """Obtain a tokeniser, into a folder that appears whole."""
    from data.tokens import tokenisers

    tokeniser = tokenisers.obtain(spec, texts, say)
    with whole_folder(folder) as scratch:
        tokenisers.save(tokeniser, scratch)
    return tokeniser


def _training_texts(corpus: str, budget: int, skip: bool | None) -> Iterator[str]:
    for document in corpora.documents(corpus, Problems(bool(skip))):
        if budget <= 0:
            return
        raw = document.text.encode("utf-8", "replace")
        if split_of(document, raw) == "train":
            budget -= len(document.text)
            yield raw.decode()


def manifest(folder: Path) -> JsonObject:
    """What a prepared folder says of itself. Errors: `UserError` where it is none."""
    try:
        result: JsonObject = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{folder} is not a prepared data folder (no manifest.json); prepare the data again") from None
    return result


def shards(folder: Path, split: str) -> Shards:
    """The shards of a split, as the manifest lists them, as one stream of tokens."""
    return Shards([folder / entry["name"] for entry in manifest(folder)[split]["shards"]])


def check(folder: Path, expected: JsonObject | None = None, hashes: bool = True) -> JsonObject:
    """Check that the shards are the ones the manifest describes, and the same as `expected`, an earlier manifest.

    Sizes are always compared. A fingerprint is computed again only where `hashes` says so, and for a shard that was
    written after the manifest: hashing terabytes at every start of a run would take hours. A manifest that was found
    right is the newer one again. Returns the manifest.
    """
    found, began = manifest(folder), time.time_ns()
    hashed = False
    finished_at = (folder / "manifest.json").stat().st_mtime_ns
    for split in SPLITS:
        if expected and found[split]["sha256"] != expected[split]["sha256"]:
            raise UserError(
                f"the {split} shards of {folder} changed since the run began; restore them or start a new run"
            )
        if not found[split]["shards"]:
            continue
        opened = shards(folder, split)
        weighted = "answer_tokens" in found[split]
        if weighted:
            Beside(opened, WEIGHTS, np.uint8)  # it says where one is missing or too short
        suffixes = (".bin", ".idx", *((WEIGHTS,) if weighted else ()))
        for shard, entry in zip(opened.shards, found[split]["shards"], strict=True):
            changed = max(with_suffix(shard.prefix, suffix).stat().st_mtime_ns for suffix in suffixes)
            if shard.num_tokens != entry["tokens"] or len(shard.lengths) != entry["documents"]:
                raise UserError(
                    f"shard {shard.prefix} holds {shard.num_tokens:,} tokens in {len(shard.lengths):,} documents where "
                    f"the manifest says {entry['tokens']:,} in {entry['documents']:,}; remove {folder} and prepare the "
                    "data again"
                )
            if not hashes or changed <= finished_at:
                continue
            hashed = True
            beside = file_sha256(with_suffix(shard.prefix, WEIGHTS)) if weighted else None
            if (digest(shard.prefix), beside) != (entry["sha256"], entry.get("weights_sha256")):
                raise UserError(
                    f"shard {shard.prefix} was changed after it was written; remove {folder} and prepare the data again"
                )
    if hashed:  # a copied folder has new times
        with suppress(OSError):
            os.utime(folder / "manifest.json", ns=(began, began))
    return found


def _holds(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _check_vocabulary(tokeniser: str, entries: int, vocab_size: int) -> None:
    if entries > vocab_size:
        raise UserError(
            f"tokeniser {tokeniser} needs {entries} entries but the model has room for {vocab_size}; raise "
            "model.vocab_size with --set, or use a smaller tokeniser"
        )


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _source(corpus: str, tokeniser: str, form: Form | None = None) -> JsonObject:
    """What identifies the input: the names, the state of local files, the content of a tokeniser's folder, the form."""
    files = sorted(Path(tokeniser).glob("*.json")) if Path(tokeniser).is_dir() else []
    vocabulary = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""
    own = {"form": form.identity()} if form else {}
    return {"corpus": corpus, **corpora.state(corpus), "tokeniser": tokeniser, "vocabulary_sha256": vocabulary, **own}


@dataclass
class _Preparation:
    """The work on one corpus. The result is the folder `lacking` where input was skipped, else the folder `whole`."""

    corpus: str
    tokeniser: str
    vocab_size: int
    form: Form | None
    source: JsonObject
    scratch: Path
    whole: Path
    lacking: Path
    accepted: list[Path]
    say: Say
    options: Options
    tasks: list[Task] = field(default_factory=list)

    def run(self) -> None:
        """Do this node's tasks. If no other node has tasks left, put all together and give the folder its name."""
        gone = CORPORA[self.corpus].gone if self.corpus in CORPORA else ""
        if gone:
            self.say(f"corpus {self.corpus}: {gone}")
        try:
            self._run()
        except Exception:
            # Another node may put all together at any moment. Then the scratch folder is gone, which makes an error
            # here, but the work is done.
            if not self._is_made():
                raise
        finally:
            if self.options.nodes == 1 and not list(self.scratch.glob("task-*.json")):
                shutil.rmtree(self.scratch, ignore_errors=True)  # it holds no finished task to go on from

    def _run(self) -> None:
        self.tasks = tasks_of(corpora.pieces(self.corpus, self.form))
        with self._alone():
            if self._is_made():
                return
            job = self._job()
        self._work(job)
        with self._alone():
            if self._is_made():
                return
            missing = len(self._unfinished(job, self.tasks))
            if missing:
                raise OthersUnfinished(
                    f"node {self.options.node} of {self.options.nodes} did its part of {self.corpus}; {missing} of "
                    f"{len(self.tasks)} tasks are not finished yet: the last node to finish puts all together"
                )
            self._put_together(job)

    def _is_made(self) -> bool:
        """Whether the folder is there already, because another node was faster."""
        return bool(_made(self.accepted))

    def _alone(self) -> AbstractContextManager[object]:
        """Hold the lock that all nodes share."""
        return locked(self.scratch.with_name(f".{self.scratch.stem}.lock"))

    def _job(self) -> Job:
        """Obtain the tokeniser, or load the one that another node or an earlier start has obtained."""
        from data.tokens import tokenisers

        options, home, made_for = self.options, self.scratch / "tokeniser", self.scratch / "tokeniser.source"
        self.say(f"tokeniser: {self.tokeniser}")
        wanted = _short_hash(self.source)  # if a file was mended since, the tokeniser is trained again
        if home.exists() and made_for.exists() and made_for.read_text() == wanted:
            tokeniser = tokenisers.load(str(home))
        else:
            texts = _training_texts(self.corpus, TOKENISER_SAMPLE_CHARACTERS, options.skip)
            tokeniser = _save_tokeniser(self.tokeniser, texts, home, self.say)
            write(made_for, wanted)
        entries = tokenisers.entries(tokeniser)
        _check_vocabulary(self.tokeniser, entries, self.vocab_size)
        vocabulary = hashlib.sha256((home / "tokenizer.json").read_bytes()).hexdigest()
        end = tokeniser.eos_token_id
        return Job(self.scratch, "", entries, end, vocabulary, bool(options.skip), options.shard_tokens, self.form)

    def _work(self, job: Job) -> None:
        options = self.options
        mine = [task for task in self.tasks if task.number % options.nodes == options.node]
        todo = self._unfinished(job, mine)
        if len(todo) < len(mine):
            self.say(f"going on: {len(mine) - len(todo)} of {len(mine)} tasks are finished already")
        if not todo:
            return
        wanted = "tokenizers" if self.form else options.engine  # examples are few, and short
        likely = "tokenizers" if wanted == "tokenizers" else "gigatoken"
        with Workers(job.tokeniser, likely, min(options.processes, len(todo))) as workers:
            engine, why = (wanted, "") if self.form else encode.choose(job.tokeniser, self._sample(), wanted)
            if why:
                self.say(why)
            fingerprints = [self._fingerprint(job, task) for task in todo]
            workers.do(list(zip(todo, fingerprints, strict=True)), replace(job, engine=engine), options.report)

    def _sample(self) -> list[str]:
        """Beginnings of texts from places all over the corpus, to compare the engines on."""
        whole = sum(task.num_bytes for task in self.tasks)
        chosen = self.tasks[:: -(-len(self.tasks) // TRIAL_PIECES)]
        share = min(int(whole * TRIAL_SHARE), MOST_TRIAL_BYTES) // len(chosen) + 1
        texts = []
        for task in chosen:
            left = share
            for document in task.documents(Problems(skip=True)):
                text = document.text[:left].encode("utf-8", "replace").decode()
                texts.append(text)
                left -= len(text)
                if left <= 0:
                    break
        return texts

    def _fingerprint(self, job: Job, task: Task) -> str:
        identity = [task.identity(), job.vocabulary_sha256, job.end_of_document, job.shard_tokens]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _record(self, job: Job, task: Task) -> JsonObject | None:
        """The record of a task, or None where it has to be done: its input changed, or its shards are not there."""
        try:
            record: JsonObject = json.loads(job.record_path(task).read_text())
        except (OSError, json.JSONDecodeError):
            return None
        if record["fingerprint"] != self._fingerprint(job, task) or (record["skipped"] and not job.skip):
            return None
        return record if all(self._whole(job, entry) for split in SPLITS for entry in record[split]) else None

    def _whole(self, job: Job, entry: JsonObject) -> bool:
        """Whether a shard is there and has as many bytes as when its task was finished."""
        tokens, index = (with_suffix(self.scratch / entry["name"], suffix) for suffix in (".bin", ".idx"))
        size = entry["tokens"] * np.dtype(token_dtype(job.vocab_size)).itemsize
        if job.form and not _holds(with_suffix(self.scratch / entry["name"], WEIGHTS), entry["tokens"]):
            return False
        return index.exists() and _holds(tokens, size)

    def _unfinished(self, job: Job, tasks: list[Task]) -> list[Task]:
        return [task for task in tasks if self._record(job, task) is None]

    def _put_together(self, job: Job) -> None:
        """Write the manifest, give the folder its name, and remove the records and what killed processes left."""
        described = self._described(job)
        if not any(described[split]["tokens"] for split in SPLITS):
            if self.form and described["left_out"]:
                raise UserError(
                    f"corpus {self.corpus} has no example that fits: all {described['left_out']:,} are longer than the "
                    f"context of {self.form.most_tokens - 1:,} tokens; give shorter ones, or another model"
                )
            raise UserError(f"corpus {self.corpus} holds no text; give another path")
        if not described["train"]["tokens"] or described["validation"]["tokens"] < 2:
            self._hold_out(job, [split for split in SPLITS if split == "train" or not described["train"]["tokens"]])
            described = self._described(job)
        if not described["train"]["tokens"]:
            raise UserError(
                f"corpus {self.corpus} has no document to train on, only validation or test; give it a train split, or "
                "name the files as a glob"
            )
        if described["validation"]["tokens"] < 2:
            raise UserError(f"corpus {self.corpus} has too little text to hold any out for validation; give more")
        for kind, count in described["skipped"].items():
            self.say(f"skipped {count:,} times, {kind}; the first: {described['first_skipped'][kind]}")
        if self.form and described["left_out"]:
            most = self.form.most_tokens - 1
            self.say(f"left out {described['left_out']:,} examples that are longer than the context of {most:,} tokens")
        write_json(self.scratch / "manifest.json", described)
        folder = self.lacking if described["skipped"] else self.whole
        give_name(self.scratch, folder)
        belongs = {"manifest", *(entry["name"] for split in SPLITS for entry in described[split]["shards"])}
        for path in folder.iterdir():  # only now: a process that is stopped earlier needs the records to go on
            if path.is_file() and path.stem not in belongs:
                path.unlink()

    def _records(self, job: Job) -> list[JsonObject]:
        records = [self._record(job, task) for task in self.tasks]
        assert all(records)
        return [record for record in records if record]

    def _described(self, job: Job) -> JsonObject:
        """The manifest, which sums up the records of all tasks."""
        records = self._records(job)
        skipped: Counter[str] = Counter()
        first: dict[str, str] = {}
        for record in records:
            skipped.update(record["skipped"])
            first = {**record["first"], **first}
        versions = corpora.versions(self.corpus, (piece for task in self.tasks for piece in task.pieces))
        splits = {}
        for split in SPLITS:
            listed = [entry for record in records for entry in record[split]]
            counted = ("documents", "bytes", "tokens", *(("answer_bytes", "answer_tokens") if self.form else ()))
            sums = {key: sum(entry[key] for entry in listed) for key in counted}
            hashes = "".join(entry["sha256"] + entry.get("weights_sha256", "") for entry in listed)
            whole = hashlib.sha256(hashes.encode()).hexdigest()
            splits[split] = {**sums, "sha256": whole, "shards": listed}
        return {
            "source": {**self.source, "versions": versions},
            "vocab_size": job.vocab_size,
            "end_of_document": job.end_of_document,
            "engines": sorted({record["engine"] for record in records}),
            "skipped": dict(skipped),
            "first_skipped": first,
            **({"left_out": sum(record["left_out"] for record in records)} if self.form else {}),
            **splits,
        }

    def _hold_out(self, job: Job, taken: list[str]) -> None:
        """Hold out the end of the training text, where no document fell to validation, or none to training.

        `taken` are the splits whose documents are for training. As many tasks as necessary are done again, from the
        last one on.
        """
        records = self._records(job)
        sizes = [sum(entry["bytes"] for split in taken for entry in record[split]) for record in records]
        left = min(int(sum(sizes) * HELD_OUT_SHARE) + 1, MOST_HELD_OUT_BYTES)
        everything = len(taken) > 1
        todo, engine = [], "tokenizers"
        for number, (record, size) in reversed([*enumerate(zip(records, sizes, strict=True))]):
            if size and (left > 0 or everything):
                engine = "gigatoken" if record["engine"].startswith("gigatoken") else "tokenizers"
                held_out = (size, max(0, min(left, size)), everything)
                self.tasks[number] = task = replace(self.tasks[number], hold_out=held_out)
                todo.append((task, self._fingerprint(job, task)))
                left -= size
        with Workers(job.tokeniser, engine, 1) as workers:
            workers.do(todo, replace(job, engine=engine))
