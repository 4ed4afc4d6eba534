"""From a corpus to a cleaner one: a folder of JSON lines that is itself a corpus.

A cleaned folder holds `part-*.jsonl.zst` and, in `_cleaning/`, `report.json` and for every stage a sample of what it
dropped. The work has three steps. First every document is looked at by itself, in chunks that processes share. Then
duplicates and common n-grams are found among the fingerprints of all documents. Then the chunks are read again and
written without what has to go. The result depends neither on the number of processes nor on how often the work was
interrupted: a finished chunk is not done again.
"""

import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.cleaning import decontamination, duplicates, filters
from data.cleaning.ngrams import Hashes, word_hashes
from data.cleaning.stages import Settings
from data.cleaning.tally import Count, Tally
from data.corpus import corpora
from data.corpus.document import utf8_bytes
from data.corpus.named import CORPORA
from data.corpus.sources import Document, Piece, Problems, read_pieces
from support.errors import UserError
from support.files import PARTIAL, enough_room, give_name, locked, write, write_json
from support.json_object import JsonObject
from support.terminal import Say, now_and_then
from support.workers import Pool

ABOUT, WORK = "_cleaning", "_work"  # readers of a corpus leave out names that begin with an underscore or a dot
CHUNK_CHARACTERS = 16_000_000  # of a chunk at most, or one longer document


def clean(settings: Settings, out: Path, workers: int = 1, say: Say = lambda line: None) -> JsonObject:
    """Clean a corpus into the folder `out`, which appears when it is whole; return its report.

    An interrupted call leaves `<out>.partial`, and the same call goes on with it. Memory: each process holds some
    fifteen times `CHUNK_CHARACTERS`, and the one that reads the corpus two chunks more for each process. Near
    duplicates take 80 bytes a document, and 500 on disk as long as the work lasts.
    Errors: `UserError` where input or output will not do, or nothing is left.
    """
    if workers < 1:
        raise UserError(f"{workers} processes cannot clean; give at least 1")
    if out.exists():
        raise UserError(f"{out} exists; remove it or give another folder")
    corpus, against = _inputs(settings)
    problems = Problems(bool(settings.skip))
    _check_apart(settings.corpus, out)
    for cache in (_evaluation, _common, _names):
        cache.cache_clear()  # their key is the path of the work, and an earlier call may have used it for other work
    with _claim(out, _identity(settings, corpus, against)) as work:
        began = time.monotonic()
        if against and not (work / "evaluation.npz").exists():
            # Bad input is an error here, even with `skip`: a text that is not read would stay in the corpus.
            _save_evaluation(settings.against, read_pieces(against), work, say)
        stream = read_pieces(corpus, problems)
        with Pool(workers) as pool:
            first = Tally()
            for tally in pool.run(_filter_chunk, _chunks(stream, settings, work)):
                first.add(tally)
                speed = first.bytes / 1e6 / (time.monotonic() - began)
                say(f"filtered {first.documents:,} documents, {first.bytes / 1e6:,.1f} MB, {speed:,.1f} MB/s")
            total = _total(work)
            fates = _decide(settings, work, total, against, say)
            for done, tally in enumerate(pool.run(_finish_chunk, fates), start=1):
                first.add(tally)
                say(f"wrote chunk {done} of {total}")
        if not first.kept:
            shutil.rmtree(work.parent)
            raise UserError(_why_nothing_is_left(settings, first))
        report = _describe(settings, first, problems, corpora.versions(settings.corpus, corpus))
        if against:
            report["evaluation"] = json.loads((work / "found.json").read_text())
        _finish(work, out, first, report)
    return report


def cleaned(settings: Settings, root: Path, workers: int = 1, say: Say = lambda line: None) -> Path:
    """Make sure that a corpus is cleaned in a folder below `root`; return it. Several processes may ask at once.

    The name of the folder depends on the settings, on the state of the local files that it is made from, and on whether
    input may be skipped. The hub is not asked where the folder is there.
    """
    folder = folder_of(settings, root)
    with locked(root / f".{folder.name}.lock"):
        if not folder.exists():
            say(f"cleaning {settings.corpus}: {', '.join(settings.stages)}")
            report = clean(settings, folder, workers, now_and_then(say))
            say(f"kept {report['documents_kept']:,} of {report['documents_read']:,} documents; see {folder / ABOUT}")
            for line in decontamination.summary(report.get("evaluation")):
                say(line)
    return folder


def folder_of(settings: Settings, root: Path) -> Path:
    """Where `cleaned` keeps a corpus, whether or not it is there."""
    inputs = [corpora.state(corpus) for corpus in (settings.corpus, settings.against) if corpus]
    made_from = json.dumps([settings.corpus, settings.stages, inputs])
    slug = re.sub(r"[^\w.-]+", "-", Path(settings.corpus).name).strip("-")
    whole, lacking = (
        root / f"{slug}-clean-{hashlib.sha256((made_from + suffix).encode()).hexdigest()[:8]}"
        for suffix in ("", " skipped")
    )
    takes_lacking = settings.skip or (settings.skip is None and lacking.exists())
    return lacking if not whole.exists() and takes_lacking else whole


# --- The folders -----------------------------------------------------------------------------------------------------


def _check_apart(corpus: str, out: Path) -> None:
    """The folder must not lie among the files that it is made from."""
    if corpus not in CORPORA and Path(corpus).is_dir() and out.resolve().is_relative_to(Path(corpus).resolve()):
        raise UserError(f"{out} lies inside the corpus {corpus}; give a folder outside of it")


@contextmanager
def _claim(out: Path, identity: str) -> Iterator[Path]:
    """The working folder of a cleaning, locked for this process. One of the same identity goes on where it was.

    Errors: `UserError` where another process holds it, or its cleaning has another identity; `NoRoomError` where the
    disk is full.
    """
    scratch = out.with_name(out.name + PARTIAL)
    work = scratch / WORK
    busy = f"another process is cleaning into {out}; wait for it or give another folder"
    with enough_room(scratch), locked(work / "lock", busy):
        kept = work / "identity.json"
        if not kept.exists():
            write(kept, identity)
        elif kept.read_text() != identity:
            raise UserError(f"{scratch} was begun with other settings or files; give those, or remove it")
        try:
            yield work
        finally:
            if scratch.exists() and not any(work.glob("*.tally.json")):
                shutil.rmtree(scratch)  # there is nothing to go on with


def _inputs(settings: Settings) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the corpus and of the evaluation texts. Errors: `UserError` where one of them does not exist."""
    return corpora.pieces(settings.corpus), corpora.pieces(settings.against) if settings.against else []


def _identity(settings: Settings, corpus: list[Piece], against: list[Piece]) -> str:
    """All that the result depends on, as JSON."""
    inputs = [[piece.identity() for piece in pieces] for pieces in (corpus, against)]
    return json.dumps([settings.corpus, settings.stages, bool(settings.skip), inputs])


def _write_records(path: Path, records: Iterable[dict[str, str]]) -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        for record in records:
            packed.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    write(path, sink.getvalue().to_pybytes())


def _read_records(path: Path) -> Iterator[dict[str, str]]:
    import pyarrow as pa

    with pa.input_stream(str(path), compression="zstd") as packed:
        for line in packed.read().split(b"\n")[:-1]:
            yield json.loads(line)


class ChunkFiles:
    """What is kept of a chunk between the steps.

    The first step writes `tally` last, and the last step `finished_tally`: where it exists, the chunk's step is done.
    """

    def __init__(self, work: Path, number: int) -> None:
        stem = f"part-{number:05d}"
        self.records = work / f"{stem}.jsonl.zst"
        self.names = work / f"{stem}.names.json"
        self.digests = work / f"{stem}.digests.npy"
        self.signatures = work / f"{stem}.signatures.npy"
        self.matches = work / f"{stem}.matches.npy"
        self.tally = work / f"{stem}.tally.json"
        self.finished = work.parent / f"{stem}.jsonl.zst"
        self.finished_tally = work / f"{stem}.finished.json"


def _save(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write(path, buffer.getvalue())


# --- First step: every document by itself ----------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Consecutive documents to filter; none where that is done already."""

    settings: Settings
    work: Path
    number: int
    documents: list[Document]


def _chunks(stream: Iterator[Document], settings: Settings, work: Path) -> Iterator[Chunk]:
    """Cut a corpus into chunks. When it was read to its end, their number is kept."""
    held: list[Document] = []
    number = characters = 0
    for document in stream:
        if held and characters + len(document.text) > CHUNK_CHARACTERS:
            yield Chunk(settings, work, number, [] if ChunkFiles(work, number).tally.exists() else held)
            held, characters, number = [], 0, number + 1
        held.append(document)
        characters += len(document.text)
    if held:
        yield Chunk(settings, work, number, [] if ChunkFiles(work, number).tally.exists() else held)
        number += 1
    write_json(work / "total.json", number)


def _total(work: Path) -> int:
    total: int = json.loads((work / "total.json").read_text())
    return total


def _filter_chunk(chunk: Chunk) -> Tally:
    """Filter the documents of a chunk, and keep those that stay and their fingerprints."""
    files = ChunkFiles(chunk.work, chunk.number)
    if not chunk.documents:
        return Tally.from_dict(json.loads(files.tally.read_text()))
    tally, stages = Tally(), chunk.settings.filters()
    kept = [document for document in (_filter(d, stages, tally) for d in chunk.documents) if document]
    _write_records(files.records, ({"text": d.text, "name": d.name, "split": d.split} for d in kept))
    write(files.names, json.dumps([document.name for document in kept]))
    _save_fingerprints(chunk.settings, chunk.work, files, [document.text for document in kept])
    write(files.tally, json.dumps(tally.to_dict()))
    return tally


def _filter(document: Document, stages: dict[str, filters.Filter], tally: Tally) -> Document | None:
    text = document.text
    tally.documents += 1
    tally.bytes += utf8_bytes(text)
    for stage, look in stages.items():
        verdict = look(text)
        if verdict.rule:
            tally.drop(stage, document.name, text, verdict.rule, partial(str, verdict.detail))
            return None
        if verdict.text != text:
            tally.change(stage, document.name, utf8_bytes(text) - utf8_bytes(verdict.text), verdict.detail)
        text = verdict.text
    return Document(document.name, text, document.split)


def _save_fingerprints(settings: Settings, work: Path, files: ChunkFiles, texts: list[str]) -> None:
    if "exact" in settings.arguments:
        raw = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
        _save(files.digests, np.frombuffer(raw, np.uint64).reshape(-1, 2))
    if not {"near", "decontaminate"} & set(settings.arguments):
        return
    words = [word_hashes(text) for text in texts]
    if "near" in settings.arguments:
        _save(files.signatures, duplicates.signatures(words))
    if "decontaminate" in settings.arguments:
        found = [_evaluation(work).matches(hashes)[2] for hashes in words]
        rows = np.repeat(np.arange(len(found), dtype=np.uint64), [len(hashes) for hashes in found])
        _save(files.matches, np.stack((rows, np.concatenate([np.empty(0, np.uint64), *found])), 1))


# --- Evaluation sets -------------------------------------------------------------------------------------------------


def _save_evaluation(where: str, documents: Iterator[Document], work: Path, say: Say) -> None:
    evaluation = decontamination.Evaluation.of(document.text for document in documents)
    if not evaluation.hashes:
        raise UserError(
            f"{where} has no text of {decontamination.SHORTEST} words to decontaminate against ({evaluation.texts} are "
            'shorter); each line needs question and answer in one field "text"'
        )
    say(
        f"decontaminating against {evaluation.texts:,} texts of {where}: "
        f"{sum(map(len, evaluation.hashes.values())):,} n-grams, {evaluation.too_short:,} texts too short"
    )
    buffer = io.BytesIO()
    np.savez(buffer, **{str(n): hashes for n, hashes in evaluation.hashes.items()})  # type: ignore[arg-type]
    write(work / "evaluation.npz", buffer.getvalue())


@lru_cache(maxsize=1)
def _evaluation(work: Path) -> decontamination.Evaluation:
    with np.load(work / "evaluation.npz") as found:
        return decontamination.Evaluation({int(n): found[n] for n in found.files})


# --- Between: what goes, seen over all -------------------------------------------------------------------------------


class Fate(NamedTuple):
    """What becomes of a chunk: for each of its documents the first equal and the first similar document of the corpus.

    Documents are numbered through the corpus, and `offsets` are the numbers of the chunks' first documents. `matched`
    are the rows of the chunk that overlap with evaluation texts.
    """

    settings: Settings
    work: Path
    number: int
    offsets: NDArray[np.int64]
    equal: NDArray[np.int64]
    similar: NDArray[np.int64]
    matched: frozenset[int]


def _decide(settings: Settings, work: Path, total: int, against: list[Piece], say: Say) -> list[Fate]:
    """Find what has to go for what stands in other documents, over all `total` chunks."""
    chunks = [ChunkFiles(work, number) for number in range(total)]
    counts = [len(json.loads(files.names.read_text())) for files in chunks]
    offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64)
    everything = np.arange(offsets[-1])
    equal = similar = everything
    if "exact" in settings.arguments and len(everything):
        equal = duplicates.first_equal(np.concatenate([np.load(files.digests) for files in chunks]))
        say(f"{np.count_nonzero(equal != everything):,} of {len(everything):,} documents are duplicates")
    if "near" in settings.arguments and len(everything):
        signatures = [np.load(files.signatures, mmap_mode="r") for files in chunks]
        similar = duplicates.first_similar(signatures, equal == everything, settings.threshold)
        say(f"{np.count_nonzero(similar != everything):,} more are near duplicates")
    alive = (equal == everything) & (similar == everything)
    matched = [frozenset[int]()] * total
    if "decontaminate" in settings.arguments:
        found = [np.load(files.matches) for files in chunks]
        matched = [frozenset(map(int, rows[:, 0])) for rows in found]
        _trace(found, offsets, alive, against, work, say)
    return [
        Fate(settings, work, n, offsets, equal[begin:end], similar[begin:end], matched[n])
        for n, (begin, end) in enumerate(pairwise(offsets))
    ]


def _trace(
    found: list[Hashes],
    offsets: NDArray[np.int64],
    alive: NDArray[np.bool_],
    against: list[Piece],
    work: Path,
    say: Say,
) -> None:
    """Save which n-grams are common among the matches of all chunks, and what becomes of each evaluation text."""
    rows = [matches[:, 0].astype(np.int64) + offset for matches, offset in zip(found, offsets, strict=False)]
    documents = np.concatenate([np.empty(0, np.int64), *rows])
    hashes = np.concatenate([np.empty(0, np.uint64), *(matches[:, 1] for matches in found)])
    stay = alive[documents]
    overlap = decontamination.Overlap.of(documents[stay], hashes[stay])
    common = overlap.common
    count = len(np.unique(overlap.documents))
    say(f"{count:,} documents overlap, {len(common):,} common n-grams are left alone")
    _save(work / "common.npy", common)
    write_json(work / "found.json", overlap.report(read_pieces(against)))


# --- Last step: write what stays -------------------------------------------------------------------------------------


def _finish_chunk(fate: Fate) -> Tally:
    """Write a chunk without the duplicates and the overlaps."""
    files = ChunkFiles(fate.work, fate.number)
    if files.finished_tally.exists():
        return Tally.from_dict(json.loads(files.finished_tally.read_text()))
    tally = Tally()
    kept = []
    for row, record in enumerate(_read_records(files.records)):
        for piece in _what_stays(fate, row, record, tally):
            kept.append({key: value for key, value in piece.items() if value})
            tally.kept += 1
            tally.kept_bytes += utf8_bytes(piece["text"])
    if kept:
        _write_records(files.finished, kept)
    write(files.finished_tally, json.dumps(tally.to_dict()))
    return tally


def _what_stays(fate: Fate, row: int, record: dict[str, str], tally: Tally) -> list[dict[str, str]]:
    """The records that a document becomes: none, itself, or what is left between the overlaps that are cut out."""
    name, text = record["name"], record["text"]
    here = int(fate.offsets[fate.number]) + row
    for stage, first, rule in (("exact", fate.equal, "duplicate"), ("near", fate.similar, "near duplicate")):
        if first[row] != here:
            tally.drop(stage, name, text, rule, partial(_like, fate, int(first[row])))
            return []
    if row not in fate.matched:
        return [record]
    pieces, removed = decontamination.cut(text, _evaluation(fate.work), _common(fate.work))
    if not pieces:
        rule = f"over {decontamination.MOST_CUTS} cuts" if len(removed) > decontamination.MOST_CUTS else "nothing left"
        tally.drop("decontaminate", name, text, rule, partial(str, f"{len(removed)} cuts"))
    elif removed:
        gone = utf8_bytes(text) - sum(map(utf8_bytes, pieces))
        tally.change("decontaminate", name, gone, "\n[…]\n".join(removed))
    if len(pieces) == 1:
        return [{**record, "text": pieces[0]}]
    return [{**record, "text": piece, "name": f"{name}#{n}"} for n, piece in enumerate(pieces, start=1)]


@lru_cache(maxsize=1)
def _common(work: Path) -> Hashes:
    return np.load(work / "common.npy")


def _like(fate: Fate, document: int) -> str:
    """Words for a report that name the document which another one repeats."""
    chunk = int(np.searchsorted(fate.offsets, document, side="right")) - 1
    return f"like {_names(fate.work, chunk)[document - int(fate.offsets[chunk])]}"


@lru_cache(maxsize=16)
def _names(work: Path, chunk: int) -> list[str]:
    names: list[str] = json.loads(ChunkFiles(work, chunk).names.read_text())
    return names


# --- The end ---------------------------------------------------------------------------------------------------------


def _describe(settings: Settings, tally: Tally, problems: Problems, versions: list[str]) -> JsonObject:
    stages = []
    for stage in settings.stages:
        count = tally.stages.get(stage.partition(":")[0], Count())
        stages.append(
            {
                "stage": stage,
                "dropped": count.dropped,
                "changed": count.changed,
                "bytes_removed": count.bytes_removed,
                "rules": dict(sorted(count.rules.items())),
            }
        )
    return {
        "corpus": settings.corpus,
        "versions": versions,
        "unreadable": dict(problems.counts),
        "documents_read": tally.documents,
        "bytes_read": tally.bytes,
        "documents_kept": tally.kept,
        "bytes_kept": tally.kept_bytes,
        "stages": stages,
    }


def _why_nothing_is_left(settings: Settings, tally: Tally) -> str:
    if not tally.documents:
        return f"corpus {settings.corpus} holds no text; give another path"
    dropped = {stage: count.dropped for stage, count in tally.stages.items() if count.dropped}
    worst = max(dropped, key=lambda stage: dropped[stage])
    rule, _ = tally.stages[worst].rules.most_common(1)[0]
    return (
        f"cleaning dropped all {tally.documents:,} documents of {settings.corpus}, {dropped[worst]:,} by {worst}, most "
        f"by the rule {rule!r}; leave that stage out with --stages"
    )


def _finish(work: Path, out: Path, tally: Tally, report: JsonObject) -> None:
    about = work.parent / ABOUT
    about.mkdir(exist_ok=True)
    for stage, count in tally.stages.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for _, record in count.samples]
        write(about / f"{stage}.jsonl", "".join(lines))
    write_json(about / "report.json", report)
    for left in work.parent.glob(f".*{PARTIAL}"):  # of a process that was killed
        left.unlink()
    give_name(work.parent, out)
    shutil.rmtree(out / work.name)
