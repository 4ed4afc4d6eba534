"""Many prompts of a file to JSON lines: each row is written as it is finished, and none twice."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.generate import described, load, requests, stops, told
from inference.named import at_step
from inference.ranks import Loading, leads, told_by_first
from inference.sampling import Sampling
from run import record
from support import json_lines
from support.errors import UserError
from support.files import enough_room, locked
from support.json_object import JsonObject
from support.terminal import now_and_then

if TYPE_CHECKING:
    from inference.decode.rows import Request, Row
    from inference.writers import Writer

OURS = b'{"line": '  # how each of our lines begins


@dataclass(frozen=True)
class Prompt:
    """A prompt, the number of its line from 1 on, and what else its line says."""

    line: int
    text: str
    more: JsonObject


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file: objects with a "prompt" where its name ends in .jsonl, else lines of text.

    Lines of blanks are passed over. Errors: `UserError` with the line that is none, and where there is no prompt.
    """
    if file.is_dir() or not file.exists():
        wrong = "is a directory" if file.is_dir() else "does not exist"
        raise UserError(f"--prompts {file} {wrong}; give a file of prompts, one a line")
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {file} is not UTF-8 at byte {error.start}; convert it") from None
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file} holds no prompts; write one a line")
    if file.suffix != ".jsonl":
        return [Prompt(number, line, {}) for number, line in lines]
    return [_parsed(file, number, line) for number, line in lines]


def _parsed(file: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"--prompts {file}, line {number}: not JSON: {error}; mend it") from None
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f'--prompts {file}, line {number}: no text "prompt"; write {{"prompt": "…"}}')
    return Prompt(number, text, {key: each for key, each in value.items() if key != "prompt"})


def write_all(
    path: Path, file: Path, out: Path, sampling: Sampling, loading: Loading, special: bool, by: str | None
) -> JsonObject:
    """Go on from every prompt of a file, and add a line to `out` for each as soon as all its samples are there.

    What stands in `out` from an earlier call with the same settings is kept and not done again. Errors: `UserError`
    where the file cannot be read, a prompt does not fit, or `out` holds something else.
    """
    prompts = read_prompts(file)
    writer, checkpoint = load(path, loading)
    wanted: list[Request] = []
    for prompt in prompts:
        try:
            wanted += requests(writer, prompt.text, sampling, special, len(wanted), within=by is not None)
        except UserError as error:
            raise UserError(f"--prompts {file}, line {prompt.line}: {error}") from None
    run = at_step(path, loading.which)[0]
    known = record.read(run) if checkpoint else None
    model = [known.id if known else str(run.resolve()), checkpoint.step if checkpoint else None]
    facts = json.dumps([*model, loading.precision, dataclasses.asdict(sampling), special, by])
    settings = hashlib.sha256(facts.encode()).hexdigest()[:16]
    with ExitStack() as held:
        kept = told_by_first(loading.ranks, lambda: held.enter_context(_taken(out, settings, prompts)))
        written = _write(writer, prompts, wanted, kept, sampling, by, out, settings)
    return {
        "prompts": str(file),
        "out": str(out),
        "rows": len(prompts),
        "kept": len(kept),
        **written,
        **told(checkpoint),
    }


@contextmanager
def _taken(out: Path, settings: str, prompts: list[Prompt]) -> Iterator[set[int]]:
    """Take `out` for this process: the lines of the prompts that are done. Errors: `UserError`."""
    _refuse_others(out, settings, prompts)
    with locked(out, f"--out {out} is being written by another process; wait, or give another"), enough_room(out):
        _cut_torn_end(out)
        yield _kept(out, settings, prompts)


def _refuse_others(out: Path, settings: str, prompts: list[Prompt]) -> None:
    """Refuse a file that is none of ours before a lock makes it ours. Errors: `UserError`."""
    if out.is_dir():
        raise UserError(f"--out {out} is a directory; give a file")
    if out.exists():
        _kept(out, settings, prompts)


def _kept(out: Path, settings: str, prompts: list[Prompt]) -> set[int]:
    """The lines of the prompts that are done. Errors: `UserError` where `out` is another call's, or something else."""
    *lines, torn = out.read_bytes().split(b"\n")
    found = json_lines.objects(lines)
    texts = {prompt.line: prompt.text for prompt in prompts}
    good = len(found) == len(lines) and torn.startswith(OURS[: len(torn)])
    for value in found:
        good = good and value.get("settings") == settings and texts.get(value.get("line", 0)) == value.get("prompt")
    if not good:
        raise UserError(f"--out {out} holds something else than rows of these prompts and settings; give another")
    return {value["line"] for value in found}


def _cut_torn_end(out: Path) -> None:
    """Remove a line that a killed process has not finished."""
    content = out.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(out, "r+b") as stream:
            stream.truncate(whole)


def _write(
    writer: "Writer",
    prompts: list[Prompt],
    wanted: "list[Request]",
    kept: set[int],
    sampling: Sampling,
    by: str | None,
    out: Path,
    settings: str,
) -> JsonObject:
    """Write what is not kept. Returns how many rows and new tokens that were, and how fast."""
    each, began, tokens, done = sampling.samples, time.monotonic(), 0, 0
    left = [request for request in wanted if prompts[request.number // each].line not in kept]
    say = now_and_then(lambda line: print(line, file=sys.stderr))
    finished: dict[int, list[Row]] = {}
    for row in writer.write(left, sampling, stops(writer, sampling)) if left else ():
        number = row.request.number // each
        tokens += len(row.new)
        rows = finished.setdefault(number, [])
        rows.append(row)
        if len(rows) < each:
            continue
        prompt, done = prompts[number], done + 1
        values = described(writer, sorted(finished.pop(number), key=lambda row: row.request.number), sampling, by)
        line = {"line": prompt.line, "prompt": prompt.text, **values, "more": prompt.more, "settings": settings}
        if not leads():
            continue
        json_lines.add(out, line)
        say(f"{len(kept) + done} of {len(prompts)} prompts")
    return {"written": done, "tokens": tokens, "tokens_per_second": tokens / (time.monotonic() - began)}
