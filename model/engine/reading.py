"""The text of a JSON, read as DeepSpeed reads it: with comments and commas at the end. Every key keeps its line."""

import json
import re
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.nearest import hint

MOST_DIGITS = 19  # of a whole number; no count goes beyond 2^63, and what is beyond 1e308 is no float
MOST_DEPTH = 50  # of objects and lists in each other; a DeepSpeed JSON has four
MOST_SHOWN = 40  # characters of a token in a message
TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|\#[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>[-+]?(?:\d[\w.]*(?:(?<=[eE])[-+]\d+)?|\.\d\w*))
      | (?P<word>[A-Za-z_$-][\w$-]*)
      | (?P<mark>[{}\[\],:])""",
    re.VERBOSE | re.DOTALL,
)
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
# What to do where a text begins so and is no JSON.
REMEDIES = {
    '"': "close the quotes",
    "/*": "close the comment",
    "'": "take double quotes",
    "\u201c": 'take plain quotes: "',
    "=": "write a colon",
    ";": "write a comma",
}
WORDS = {"true": True, "false": False, "null": None}
PYTHON = {"True": "write true", "False": "write false", "None": "write null"}
Token = tuple[str, str, int]  # kind, text, line


class JsonFile(dict[str, Any]):
    """An object of a JSON file. `lines` has the line of each key, by its path: `zero_optimization.stage`."""

    lines: dict[str, int]


def parse(path: Path) -> JsonFile:
    """The object in a file. Errors: `UserError` with file, line and remedy where it is no JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; give a DeepSpeed JSON") from None
    except FileNotFoundError:
        known = sorted(str(file) for file in path.parent.glob("*.json"))
        remedy = hint(str(path), known) if known else "give a DeepSpeed JSON, for example ds_configs/zero1_bf16.json"
        raise UserError(f"{path} does not exist; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {reason}; give a DeepSpeed JSON") from None
    return parse_text(text, str(path))


def parse_text(text: str, where: str) -> JsonFile:
    """The object in a text that stands in `where`. Errors: `UserError`, as `parse`."""
    reader = _Reader(list(_tokens(text, where)), where)
    if reader.next[1] != "{":
        reader.fail("a DeepSpeed JSON must hold a JSON object", "begin it with {")
    result = JsonFile(reader.value(""))
    if reader.next[0] != "end":
        reader.fail(f"{reader.next[1]} stands after the end of the object", "take it out")
    result.lines = reader.lines
    return result


def _tokens(text: str, where: str) -> Any:
    line = start = 0
    while start < len(text):
        found = TOKEN.match(text, start)
        if found is None:
            rest = text[start:].split("\n", 1)[0][:20]
            remedy = next((what for mark, what in REMEDIES.items() if rest.startswith(mark)), "take it out")
            raise UserError(
                f"{where} line {line + 1} is not JSON: {json.dumps(rest, ensure_ascii=False)[1:-1]}; {remedy}"
            )
        kind, token = str(found.lastgroup), found[0]
        if kind != "skip":
            yield kind, token, line + 1
        line, start = line + token.count("\n"), found.end()
    yield "end", "the end of the file", line + 1


class _Reader:
    """Reads a value from tokens, the next of which is `next`."""

    def __init__(self, tokens: list[Token], where: str) -> None:
        self.tokens, self.where, self.position, self.depth = tokens, where, 0, 0
        self.lines: dict[str, int] = {}

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def fail(self, what: str, remedy: str) -> None:
        if self.next[0] == "end" and self.position:
            what, remedy = "the JSON is not finished", "close what was opened"
        raise UserError(f"{self.where} line {self.next[2]}: {what}; {remedy}")

    @property
    def shown(self) -> str:
        """The next token, cut where it is long."""
        text = self.next[1]
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"

    def value(self, path: str) -> Any:
        kind, text, _ = self.next
        if text in ("{", "[") and kind == "mark":
            return self._deeper(path, text)
        if kind == "string":
            result: Any = self._string()
        elif kind == "number":
            result = self._number(text)
        elif text in WORDS:
            result = WORDS[text]
        else:
            if text in ("NaN", "Infinity", "-Infinity"):
                self.fail(f"{self.shown} is no number in JSON", "give a finite one")
            remedy = PYTHON.get(text, "put a word into quotes")
            self.fail(f"{self.shown} is no value in JSON", remedy)
        self.position += 1
        return result

    def _deeper(self, path: str, opening: str) -> Any:
        if self.depth == MOST_DEPTH:
            self.fail(f"more than {MOST_DEPTH} objects stand in each other", "a DeepSpeed JSON has four; take them out")
        self.depth += 1
        self.position += 1
        result = self._object(path) if opening == "{" else self._list(path)
        self.position += 1
        self.depth -= 1
        return result

    def _object(self, path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while self.next[1] != "}":
            if self.next[0] != "string":
                self.fail(f"{self.shown} stands where a key should", "put keys into quotes, and a comma between them")
            key, line = self._string(), self.next[2]
            if key in result:
                self.fail(f"key {key} stands twice", "remove one")
            self.position += 1
            self._expect(":", f"no colon stands after key {key}")
            inner = f"{path}.{key}" if path else key
            self.lines[inner] = line
            result[key] = self.value(inner)
            if self.next[1] != "}":
                self._expect(",", f"{self.shown} stands after {key}, where a comma or a brace should")
        return result

    def _list(self, path: str) -> list[Any]:
        result: list[Any] = []
        while self.next[1] != "]":
            result.append(self.value(path))
            if self.next[1] != "]":
                self._expect(",", f"{self.shown} stands where a comma or a bracket should")
        return result

    def _expect(self, mark: str, complaint: str) -> None:
        if self.next[1] != mark:
            self.fail(complaint, f"write {mark} there")
        self.position += 1

    def _string(self) -> str:
        try:
            return str(json.loads(self.next[1], strict=False))
        except ValueError:
            self.fail(f"{self.shown} is no text in JSON", "write a backslash as two of them")
            raise

    def _number(self, text: str) -> float:
        found = NUMBER.fullmatch(text)
        if found is None:
            self.fail(f"{self.shown} is no number in JSON", "write it as 5, 0.5 or 5e8")
        elif found[1] or found[2]:
            return float(text)
        if len(text) > MOST_DIGITS:
            self.fail(f"a number of {len(text)} digits is too large", f"give one of at most {MOST_DIGITS}")
        return int(text)
