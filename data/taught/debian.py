"""Tasks out of Debian: descriptions of packages, to shorten and to translate, and LibreOffice's help in languages.

Debian's lists change with each release. apt checks their signature; how many rows they gave is told.
"""

import html
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.corpus.fetch import DebianIndex, debian_index, fetch_debian
from data.taught.rows import Row, written

LEAST_LONG = 200  # characters of a description that is worth a summary
LEAST_PACKAGES = 3  # of a source that are worth one line
LEAST_WORDS = 2  # of an English paragraph that is worth a translation
NAMES = {"de": "German", "fr": "French", "zh-CN": "Chinese"}
PARAGRAPH = re.compile(r'<p id="(par_[^"]+)"[^>]*>(.*?)</p>', re.DOTALL)


class Description(NamedTuple):
    """What a package says of itself in a language: in a line, and at length. `md5` is of the English one."""

    package: str
    md5: str
    short: str
    long: str


def blocks(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a list of Debian's, by field; further lines of a field lose the blank in front."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in filter(None, block.split("\n")):
            if line[0].isspace():
                fields[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def unwrapped(lines: str) -> str:
    """A long description as text: its lines are joined, a lone dot parts paragraphs, indented lines stay."""
    text = ""
    for line in lines.split("\n"):
        if line.strip() == ".":
            text += "\n"
        elif line[:1].isspace() or not text or text.endswith("\n"):
            text += "\n" * bool(text and not text.endswith("\n")) + line.strip()
        else:
            text += " " + line.strip()
    return text.strip()


def descriptions(index: DebianIndex, language: str) -> list[Description]:
    """All descriptions in a language, in the order of the packages' names, none twice."""
    found: dict[tuple[str, str], Description] = {}
    for file in index.files(f"_Translation-{language}"):
        for fields in blocks(file.read_text("utf-8")):
            short, _, long = fields[f"Description-{language}"].partition("\n")
            each = Description(fields["Package"], fields["Description-md5"], short, unwrapped(long))
            found.setdefault((each.package, each.md5), each)
    return [found[key] for key in sorted(found)]


def sources_of(index: DebianIndex) -> dict[str, str]:
    """The source of each package, where it is of another name."""
    return {
        fields["Package"]: fields["Source"].split()[0]
        for file in index.files("_Packages")
        for fields in blocks(file.read_text("utf-8"))
        if "Source" in fields
    }


def summaries() -> Iterator[Row]:
    """Long descriptions, each to be said in its short one; one row where several packages say the same at length."""
    with debian_index("en") as index:
        source, known = sources_of(index), set[str]()
        for each in descriptions(index, "en"):
            if len(each.long) >= LEAST_LONG and each.long not in known:
                known.add(each.long)
                prompt = f"{each.long}\nIn one line:"
                yield written(prompt, f" {each.short}", source.get(each.package, each.package), each.long)


def sources() -> Iterator[Row]:
    """What the packages of a source say, to be said in the line of the one that has the source's name."""
    with debian_index("en") as index:
        source, of = sources_of(index), defaultdict[str, dict[str, Description]](dict)
        for each in descriptions(index, "en"):
            of[source.get(each.package, each.package)].setdefault(each.package, each)
    for name, packages in sorted(of.items()):
        if name in packages and len(packages) >= LEAST_PACKAGES:
            others = [f"{each.package}: {each.long}" for package, each in packages.items() if package != name]
            yield written("\n\n".join(others) + "\nAll in one line:", f" {packages[name].short}", name)


def packages(language: str) -> Iterator[Row]:
    """Descriptions in English, each to be said in another language; equal ones once."""
    with debian_index("en", language) as index:
        source, known = sources_of(index), set[tuple[str, str]]()
        other = {each.md5: each for each in descriptions(index, language)}
        for each in descriptions(index, "en"):
            there = other.get(each.md5)
            pair = (f"{each.short}\n{each.long}", f"{there.short}\n{there.long}" if there else "")
            if there and pair not in known and pair[0] != pair[1]:
                known.add(pair)
                yield translated(*pair, language, source.get(each.package, each.package), "\n\n")


def help_pages(language: str) -> Iterator[Row]:
    """Paragraphs of LibreOffice's help that have the same file and the same id in both languages; equal pairs once."""
    with (
        debian_index() as index,
        fetch_debian("libreoffice-help-en-us", index.options) as (english, _),
        fetch_debian(f"libreoffice-help-{language.lower()}", index.options) as (other, _),
    ):
        place = Path("usr/share/libreoffice/help")
        known = set[tuple[str, str]]()
        for file in sorted((english / place / "en-US").rglob("*.html")):
            name = file.relative_to(english / place / "en-US")
            there = other / place / language / name
            translations = paragraphs(there) if there.exists() else {}
            for number, text in paragraphs(file).items():
                pair = (text, translations.get(number, ""))
                if pair[1] and pair not in known and text != pair[1] and len(text.split()) >= LEAST_WORDS:
                    known.add(pair)
                    yield translated(*pair, language, str(name))


def paragraphs(file: Path) -> dict[str, str]:
    """The texts of a page's paragraphs, by their ids; empty ones are left out."""
    found = PARAGRAPH.findall(file.read_text("utf-8", "replace"))
    texts = {number: " ".join(html.unescape(re.sub(r"<[^>]+>", "", inner)).split()) for number, inner in found}
    return {number: text for number, text in texts.items() if text}


def translated(english: str, other: str, language: str, group: str, gap: str = "\n") -> Row:
    """A row that asks for the translation of a text."""
    return written(f"English: {english}{gap}{NAMES[language]}:", f" {other}", group, english)
