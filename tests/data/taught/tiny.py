"""What tasks are made of, in little: archives in the form of those of PyPI and npm, and an apt-get of our own."""

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from data.corpus.fetch import file_sha256
from data.taught import npm, pypi

REVIEWS = [
    ("0.5", "A fine  film."),
    ("-2.25", "It bores."),
    ("0.49", "Neither so nor so."),
    *((str((-1) ** number), f"film {number} was of sort {number * 7}") for number in range(40)),
]
ENGLISH = """conversations:
- - Are you sapient?
  - No.
- - are you sapient?
  - Do you think I am?
  - Left over.
- - Alone.
- - Hi
  - Hello
  - "  "
  - Nobody asked.
- - Hi
  - Hello
"""
POEMS = [
    {"author": "李白", "title": "靜夜思", "paragraphs": ["床前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。"]},
    *(
        {
            "author": "甲",
            "title": f"第{chr(0x4E00 + n)}",
            "paragraphs": ["".join(chr(0x5000 + 40 * n + k) for k in range(5)) + "。"],
        }
        for n in range(40)
    ),
]
WORDS = [["月", "月", "yue4", "moon", [], []], ["光", "光", "guang1", ["light", "(a ray)"], [], []]]


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as members:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            members.addfile(member, io.BytesIO(raw))
    return path


def pypi_cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a cache that holds the archives of PyPI, as if they were the real ones."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(folder))
    lines = [f"{number}\t{rating}\t{text}" for number, (rating, text) in enumerate(REVIEWS)]
    inner = pack(folder.with_name("inner.tar.gz"), {pypi.REVIEWS: "\n".join(lines).encode()}).read_bytes()
    vader = {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}
    monkeypatch.setattr(pypi, "VADER_SHA256", file_sha256(pack(folder / "vaderSentiment-3.3.2.tar.gz", vader)))
    talk = {
        f"c/data/{name}/ai.yml": text.encode() for name, text in (("english", ENGLISH), ("german", "conversations: []"))
    }
    made = pack(folder / "chatterbot_corpus-1.3.3.tar.gz", talk)
    monkeypatch.setattr(pypi, "CHATTERBOT_SHA256", file_sha256(made))


def npm_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an npm in front that hands out our packages, in the empty cache `folder`."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(folder))
    index = folder.with_name("index")
    tang = "package/dist/quantangshi/poet.tang.0.json"
    song = "package/dist/quantangshi/poet.song.0.json"
    poetry = pack(
        index / npm.POETRY / "p.tgz",
        {tang: json.dumps(POEMS).encode(), song: json.dumps(POEMS[:1]).encode(), "package/LICENSE": b"MIT"},
    )
    words = b"export default " + json.dumps({"all": WORDS}).encode() + b";\n"
    cedict = pack(index / npm.CEDICT / "c.tgz", {"package/data/all.js": words})
    for name, path in (("POETRY", poetry), ("CEDICT", cedict)):
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        monkeypatch.setattr(npm, f"{name}_INTEGRITY", f"sha512-{digest}")
    program(folder, monkeypatch, "npm", f'[ "$1" = pack ] && cp {index}/"$4"/*.tgz .')


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program in front of those of the machine."""
    file = folder.with_name("bin") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")


LONG = (
    " The first line of a description that is long\n enough, and ends. {0}\n .\n It has:\n  * a list {0}\n and so on."
    + 20 * " more"
)


def packages() -> list[dict[str, str]]:
    """What two lists say: of a source with three packages, of many sources with one, and of one that is short."""
    named = [("tool", "tool"), ("tool-data", "tool"), ("libtool", "tool")] + [(f"p{n}", f"p{n}") for n in range(40)]
    return [
        {
            "package": name,
            "source": source,
            "md5": f"{number:032x}",
            "short": f"Short of {name}",
            "long": LONG.format(f"{name} {number * number}"),
        }
        for number, (name, source) in enumerate(named)
    ] + [{"package": "small", "source": "small", "md5": "f" * 32, "short": "Small", "long": " Too short."}]


def apt(folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str = "") -> None:
    """Put an apt-get in front that writes our lists, without that of the language `missing`, and packs help pages."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(folder))
    given = folder.with_name("lists")
    given.mkdir()
    known = packages()
    (given / "deb_main_binary_Packages").write_text(
        "\n\n".join(f"Package: {each['package']}\nSource: {each['source']} (1.0)" for each in known)
    )
    for language, those in (("en", known), ("de", known[:30])):
        kind = "" if language == "en" else "Deutsch: "
        texts = [
            f"Package: {each['package']}\nDescription-md5: {each['md5']}\n"
            f"Description-{language}: {kind}{each['short']}\n{each['long']}\n"
            for each in those
        ]
        if language != missing:
            (given / f"deb_main_i18n_Translation-{language}").write_text("\n".join(texts))
    program(
        folder,
        monkeypatch,
        "apt-get",
        'for word; do case "$word" in Dir::State::lists=*) lists=${word#*=};; esac; last=$word; done\n'
        f'if [ "$1" = update ]; then cp {given}/* "$lists"; else echo packed > "$last"_1_all.deb; fi',
    )
    pages = folder.with_name("pages")
    program(folder, monkeypatch, "dpkg-deb", f'mkdir -p "$3"; cp -r {pages}/$(basename "$2" _1_all.deb)/. "$3"')
    form = '<body><p id="par_{}" class="paragraph" dir="auto">{}</p></body>'
    for package, language, word in (("en-us", "en-US", "open"), ("de", "de", "auf"), ("zh-cn", "zh-CN", "打开")):
        place = pages / f"libreoffice-help-{package}" / "usr/share/libreoffice/help" / language / "text"
        place.mkdir(parents=True)
        for number in range(40):
            lines = [
                form.format("id1", f"To <b>{word}</b>&amp;\n close file {number * 31} of {number}."),
                form.format("id2", "F1"),
                form.format("id3", "Math.sqrt x"),  # the same in all languages
                form.format("id4", "Every page" if package == "en-us" else word),
                form.format(f"only_{language}", "Nobody else has this."),
                '<p id="bm_1">No text of the page itself.</p>',
            ]
            (place / f"{number}.html").write_text("\n".join(lines))
