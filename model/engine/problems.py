"""What is wrong with a JSON: all of it, each in a line with file, line, key, what and remedy."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from model.engine.table import ROWS
from support.errors import UserError
from support.json_object import JsonObject

OLD_SPELLINGS = {row.to: row.key for row in ROWS.values() if row.here == "moved"}
MOST_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value of a key, and the remedy. `key` is its path as it stands in the file."""

    key: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Located(Problem):
    """A problem and where it is; `line` is None where nothing of the key stands in the file."""

    file: str
    line: int | None

    def __str__(self) -> str:
        return f"{self.file}{f' line {self.line}' if self.line else ''}: {self.what}; {self.remedy}"


class JsonError(UserError):
    """All that is wrong with a JSON."""

    def __init__(self, problems: tuple[Located, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

    @property
    def lines(self) -> list[str]:
        return [str(problem) for problem in self.problems]


def refuse(problems: Iterable[Problem], config: JsonObject, where: str) -> None:
    """Raise where there are problems, in the order of their lines. `config` was read from `where`.

    Errors: `JsonError`.
    """
    lines: dict[str, int] = getattr(config, "lines", {})
    found = [Located(p.key, _one_line(p.what), p.remedy, where, _line(p.key, lines)) for p in dict.fromkeys(problems)]
    if found:
        raise JsonError(tuple(sorted(found, key=lambda problem: problem.line or 0)))


def _one_line(text: str) -> str:
    """A text with what no terminal should get written out: a key may hold a line's end, or an escape."""
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def _line(key: str, lines: dict[str, int]) -> int | None:
    """The line of a key: of its old spelling or of its section where it does not stand there itself."""
    while key:
        found = lines.get(key) or lines.get(OLD_SPELLINGS.get(key, ""))
        if found:
            return found
        key = key.rpartition(".")[0]
    return None


def shown(value: Any) -> str:
    """A value as it stands in a JSON, cut where it is long."""
    text = "infinite" if value in (float("inf"), float("-inf")) else json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
