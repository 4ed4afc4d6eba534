"""The rows of a task that lie in JSON lines on this machine: lm-eval reads `None` where a row lacks a field."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

if TYPE_CHECKING:
    from jinja2.nodes import Template

TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")


def check(task: str, config: JsonObject) -> None:
    """Each row is an object that has all fields that the task's templates name, as far as these are plain ones.

    Errors: `UserError` with the file, the line and the field; where a file is missing or holds no row.
    """
    files = list(_files(config))
    fields = set() if config.get("process_docs") else _fields(task, config)
    for file in files:
        if not file.is_file():
            raise UserError(f"task {task}: {file} does not exist; give its data_files as paths from where you are")
        empty = True
        try:
            with open(file, encoding="utf-8") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        _check(f"{file}, line {number}", line, fields)
                        empty = False
        except UnicodeDecodeError as error:
            raise UserError(f"task {task}: {file} is not UTF-8 at byte {error.start}; convert it") from None
        if empty:
            raise UserError(f"task {task}: {file} holds no rows; write JSON objects into it, one a line")


def _files(config: JsonObject) -> Iterator[Path]:
    """The files of JSON lines that a task reads."""
    given = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") != "json" or not given:
        return
    for entry in given.values() if isinstance(given, dict) else [given]:
        for name in entry if isinstance(entry, list) else [entry]:
            if "://" not in str(name) and str(name).endswith(".jsonl"):
                yield from map(Path, sorted(glob.glob(str(name))) or [str(name)])


def _fields(task: str, config: JsonObject) -> set[str]:
    """The fields that templates name and do not ask about: a template of one word may be a field's name, or itself."""
    from jinja2 import TemplateSyntaxError, meta
    from lm_eval.utils import env

    found: set[str] = set()
    for name in TEMPLATES:
        text = config.get(name)
        if isinstance(text, str) and "{" in text:
            try:
                parsed = env.parse(text)
                found |= meta.find_undeclared_variables(parsed) - _optional(parsed)
            except TemplateSyntaxError as error:
                raise UserError(f"task {task}: {name} is no template: {error}; mend it") from None
    return found


def _optional(template: "Template") -> set[str]:
    """The fields that a template does without: those of its conditions, and those that have a default."""
    from jinja2 import nodes

    asks = [branch.test for branch in template.find_all((nodes.If, nodes.CondExpr))]
    asks += [each for each in template.find_all(nodes.Filter) if each.name in ("default", "d")]
    return {name.name for each in asks for name in [*each.find_all(nodes.Name), each] if isinstance(name, nodes.Name)}


def _check(where: str, line: str, fields: set[str]) -> None:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}; mend it") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: no JSON object; write {{…}}")
    for field in sorted(fields):
        if row.get(field) is None:
            known = [key for key, value in row.items() if value is not None]
            raise UserError(
                f"{where}: no field {field!r}, which the task needs; {hint(field, known, otherwise='add it')}"
            )
