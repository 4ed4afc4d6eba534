"""What the tests of preparing share: the documents, and what lies in a folder."""

from pathlib import Path

from data.tokens import prepare, tokenisers

LINES = [f"Document {i} says that the number is {i * i} and the rest is the same.\n" for i in range(400)]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*-*")) if path.is_file()}


def decoded(folder: Path, split: str) -> list[str]:
    loaded = tokenisers.load(str(folder / "tokeniser"))
    facts = prepare.manifest(folder)[split]
    tokens = prepare.shards(folder, split).read().tolist() if facts["tokens"] else []
    return loaded.decode(tokens).split(loaded.eos_token)[:-1]
