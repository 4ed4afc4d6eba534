"""The rows of our own tasks, checked before anything is computed."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus import bigbench, corpora
from data.corpus.chat import ASSISTANT, SAID, transcript
from data.taught import sets
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset

LAMBADA = "STAGECRAFT_LAMBADA"
LISTS = ("answers", "choices")
GOLD = "gold"  # the number of the right choice, from 0
MESSAGES, SPLIT = "messages", "split"
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\d])|\n+")
SENTENCES = 50  # of a text that are ranked, the first ones


def load(rows: str, fields: Sequence[str], **_: object) -> "dict[str, Dataset]":
    """The rows of a task of BIG-bench, for lm-eval, which adds arguments of its own.

    Errors: `UserError` where the package cannot be fetched, and as `checked`.
    """
    from datasets import Dataset

    path = bigbench.rows_file(rows)
    return {"test": Dataset.from_list(list(checked(path, fields, path.parent)))}


def taught(rows: str, fields: Sequence[str], **_: object) -> "dict[str, Dataset]":
    """The held-out rows of a set to learn a task from; a row without "answers" has its completion as the only one.

    Of a conversation all but the last answer is the prompt, as a transcript. Errors: as `load`.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(_held_out(rows, fields))}


def extracted(rows: str, fields: Sequence[str], **_: object) -> "dict[str, Dataset]":
    """The held-out rows of a set of summaries, each with the first sentences of its text, and what asks for a summary.

    Errors: as `load`, and `UserError` for a row without a sentence.
    """
    from datasets import Dataset

    path = sets.rows_file(rows)
    return {"test": Dataset.from_list([_cut(row, path) for row in _held_out(rows, fields)])}


def _cut(row: JsonObject, path: Path) -> JsonObject:
    text, _, question = row["prompt"].rpartition("\n")
    found = sentences(text)[:SENTENCES]
    if not found:
        raise UserError(f'{path}: there is no sentence above "{question}" in a row; {_again(path)}')
    return {**row, "sentences": found, "question": question}


def _again(made: Path) -> str:
    return f"mend it, or remove {made}, so that it is made again"


def sentences(text: str) -> list[str]:
    """A text's sentences: they end with a mark before a capital, or with the line."""
    return [part.strip() for part in SENTENCE.split(text) if part.strip()]


def _held_out(rows: str, fields: Sequence[str]) -> list[JsonObject]:
    path = sets.rows_file(rows)
    found = checked(path, [*fields, SPLIT], path)
    return [_asked(row) for row in found if row.pop(SPLIT) == "test"]


def _asked(row: JsonObject) -> JsonObject:
    if messages := row.get(MESSAGES):
        return {"prompt": transcript(messages[:-1]), "completion": f" {messages[-1]['content']}"}
    return {"answers": [row["completion"].strip()], **row}


def lambada(**_: object) -> "dict[str, Dataset]":
    """LAMBADA's texts, each as its last word and the start before it.

    Errors: `UserError` where nobody said where they are, where they cannot be read, and for a text of one word.
    """
    from datasets import Dataset

    place = os.environ.get(LAMBADA)
    if not place:
        raise UserError(
            f'LAMBADA comes from a file of yours: set {LAMBADA} to its JSON lines with a field "text", or to their '
            "folder; or ask for the hub's task lambada_openai"
        )
    return {"test": Dataset.from_list([last_word(each.text, each.name) for each in corpora.documents(place)])}


def last_word(text: str, name: str) -> JsonObject:
    """Cut a text before its last word, as white space parts words. Errors: `UserError` where it has only one."""
    start, _, word = text.strip().replace("\n", " \n").rpartition(" ")
    if not start.strip():
        raise UserError(f"{name}: LAMBADA's text {text[:40]!r} has no word before its last one; mend or remove it")
    return {"start": start.replace(" \n", "\n").rstrip(), "word": word.strip()}


def checked(path: Path, fields: Sequence[str], made: Path) -> Iterator[JsonObject]:
    """The rows of a file of JSON lines, with these fields only. What was `made` with it is made again where it is gone.

    Errors: `UserError` that says file, line and field.
    """
    again = _again(made)
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path} line {number} is no JSON object; {again}")
            for field in fields:
                if wrong := fault(row, field):
                    raise UserError(f'{path} line {number} {wrong} "{field}"; {again}')
            yield {field: row[field] for field in fields}


def fault(row: JsonObject, field: str) -> str:
    """What is wrong with a field, "" if nothing is."""
    if field not in row:
        return "has no field"
    value = row[field]
    if field in LISTS:
        good = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
        return "" if good else "has no list of texts in field"
    if field == MESSAGES:
        good = (
            isinstance(value, list)
            and value
            and all(
                isinstance(each, dict) and each.get("role") in SAID and isinstance(each.get("content"), str)
                for each in value
            )
        )
        return (
            "" if good and value[-1]["role"] == ASSISTANT else "has no conversation that ends with an answer in field"
        )
    if field == GOLD:
        good = isinstance(value, int) and value in range(len(row.get("choices", ())))
        return "" if good else "has no number of a choice in field"
    return "" if isinstance(value, str) else "has no text in field"
