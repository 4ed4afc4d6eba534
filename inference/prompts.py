"""Many prompts of a file to JSON lines: each row is written as it is finished, and none twice."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus.document import SPLIT_FIELD
from inference import answers
from inference.generate import described, load, requests, stops, told
from inference.named import at_step
from inference.ranking import WAYS, known
from inference.ranks import Loading, leads, told_by_first
from inference.replicas import Replica
from inference.sampling import Sampling, is_text
from run import record
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import now_and_then

if TYPE_CHECKING:
    from inference.decode.rows import Request, Row
    from inference.writers import Writer
    from run.checkpoints import Chosen


@dataclass(frozen=True)
class Prompt:
    """A prompt, the number of its line from 1 on, and what else its line says."""

    line: int
    text: str
    more: JsonObject


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt: the flag's, a file's, or standard input's where something is piped in; else empty."""
    if text is not None:
        return _decoded("--prompt", os.fsencode(text))  # what is not UTF-8 reaches us as halves of surrogate pairs
    if file:
        content = _content("--file", file, "the path of a text file")
        if not content:
            raise UserError(f'--file {file} is empty; give another, or --prompt "" for the beginning of a document')
        return _decoded(f"--file {file}", content).replace("\r\n", "\n")
    return "" if sys.stdin is None or sys.stdin.isatty() else _decoded("standard input", sys.stdin.buffer.read())


def _content(flag: str, file: Path, wanted: str) -> bytes:
    """What a file holds. Errors: `UserError` where it cannot be read."""
    if file.is_dir() or not file.exists():
        wrong = "is a directory" if file.is_dir() else "does not exist"
        raise UserError(f"{flag} {file} {wrong}; give {wanted}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {file} cannot be read: {error.strerror}; give {wanted}") from None


def _decoded(where: str, content: bytes) -> str:
    """Text of UTF-8, without the mark that some programs put before it. Errors: `UserError` where it is none."""
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}; convert it") from None
    if (at := text.find("\0")) >= 0:
        raise UserError(f"{where} is no text: character {at + 1} is zero; give a text in UTF-8")
    return text


def read_prompts(file: Path, again: bool = False) -> list[Prompt]:
    """The prompts of a file: objects with a "prompt" where its name ends in .jsonl, else lines of text.

    Lines of blanks are passed over. Errors: `UserError` with the line that is none, where there is no prompt, and where
    the file is to be read `again` and is a pipe.
    """
    if again and file.exists() and not (file.is_file() or file.is_dir()):
        raise UserError(
            f"--prompts {file} is a pipe, which can be read but once; write it into a file for several ranks"
        )
    text = _decoded(f"--prompts {file}", _content("--prompts", file, "a file of prompts, one a line"))
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file} holds no prompts; write one a line")
    if file.suffix != ".jsonl":
        return [Prompt(number, line, {}) for number, line in lines]
    return [_parsed(file, number, line) for number, line in lines]


def _parsed(file: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--prompts {file}, line {number}: not JSON: {error}; mend it") from None
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f'--prompts {file}, line {number}: no text "prompt"; write {{"prompt": "…"}}')
    if not is_text(text):
        raise UserError(f'--prompts {file}, line {number}: "prompt" holds half of a surrogate pair, which is no text')
    return Prompt(number, text, {key: each for key, each in value.items() if key != "prompt"})


def write_all(
    path: Path, file: Path, out: Path, sampling: Sampling, loading: Loading, special: bool, by: str | None
) -> JsonObject:
    """Go on from every prompt of a file, and add a line to `out` for each as soon as all its samples are there.

    What stands in `out` from an earlier call with the same settings is kept and not done again, whatever ranks wrote
    it. Several copies of the model share the rest. The first rank alone reads and writes files. Errors: `UserError`
    where the file cannot be read, a prompt does not fit, or `out` holds something else.
    """
    way = known(by)
    prompts = read_prompts(file) if leads() else []
    writer, checkpoint = load(path, loading)
    prompts = told_by_first(loading.ranks, lambda: prompts)
    wanted: list[Request] = []
    for prompt in prompts:
        try:
            wanted += requests(writer, prompt.text, sampling, special, len(wanted), within=by in WAYS)
        except UserError as error:
            raise UserError(f"--prompts {file}, line {prompt.line}: {error}") from None
    settings = told_by_first(loading.ranks, lambda: _settings(path, checkpoint, loading, sampling, special, way))
    texts = {prompt.line: prompt.text for prompt in prompts}
    with ExitStack() as held:
        kept = told_by_first(loading.ranks, lambda: held.enter_context(answers.taken(out, settings, texts)))
        book = Book(prompts, out, kept, Replica(loading), settings)
        book.write(writer, wanted, sampling, by)
    return {
        "prompts": str(file),
        "out": str(out),
        "rows": len(prompts),
        "kept": len(kept),
        **book.told(),
        **told(checkpoint),
    }


def _settings(
    path: Path, checkpoint: "Chosen | None", loading: Loading, sampling: Sampling, special: bool, way: str | None
) -> str:
    """What tells the rows of one call from those of another, in a few letters."""
    run = at_step(path, loading.which)[0]
    who = record.read(run) if checkpoint else None
    model = [who.id if who else str(run.resolve()), checkpoint.step if checkpoint else None]
    facts = json.dumps([*model, loading.precision, dataclasses.asdict(sampling), special, way])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


class Book:
    """The rows of one call: this copy of the model writes its own, and the first rank adds those of all to `out`."""

    def __init__(self, prompts: list[Prompt], out: Path, kept: set[int], replica: Replica, settings: str) -> None:
        self.prompts, self.out, self.kept, self.replica, self.settings = prompts, out, kept, replica, settings
        self.done = self.tokens = 0
        self.began = time.monotonic()
        self.say = now_and_then(lambda line: print(line, file=sys.stderr))

    def write(self, writer: "Writer", wanted: "list[Request]", sampling: Sampling, by: str | None) -> None:
        """Write what is not kept. Errors: `UserError`, which the first rank hears too."""
        try:
            self._write(writer, wanted, sampling, by)
        except UserError as error:
            self._give({"error": str(error)})
            raise
        self._give({"done": True})
        post = self.replica.post
        while leads() and post and post.waits:
            self._take(post.come())

    def told(self) -> JsonObject:
        """How many rows and new tokens were written, and how fast."""
        seconds = time.monotonic() - self.began
        return {"written": self.done, "tokens": self.tokens, "tokens_per_second": self.tokens / seconds}

    def _write(self, writer: "Writer", wanted: "list[Request]", sampling: Sampling, by: str | None) -> None:
        each = sampling.samples
        rows = [number for number, prompt in enumerate(self.prompts) if prompt.line not in self.kept]
        mine = self.replica.of(rows)
        left = [request for number in mine for request in wanted[number * each : (number + 1) * each]]
        stopped, post = stops(writer, sampling), self.replica.post
        finished: dict[int, list[Row]] = {}

        def looked(row: "Row") -> bool:
            if leads() and post:
                self._take(post.look())
            return stopped(row)

        for row in writer.write(left, sampling, looked) if left else ():
            number = row.request.number // each
            together = finished.setdefault(number, [])
            together.append(row)
            if len(together) == each:
                together = sorted(finished.pop(number), key=lambda row: row.request.number)
                values = described(writer, together, sampling, by, self.replica.speaks)
                self._finish(self.prompts[number], values, sum(len(row.new) for row in together))

    def _finish(self, prompt: Prompt, values: JsonObject, tokens: int) -> None:
        """A row of this copy is finished."""
        row = {"line": prompt.line, "prompt": prompt.text, **values, "more": prompt.more, "settings": self.settings}
        if SPLIT_FIELD in prompt.more:  # the rows are a corpus, in which what was held out stays so
            row[SPLIT_FIELD] = prompt.more[SPLIT_FIELD]
        if leads():
            self._take([{"row": row, "tokens": tokens}])
        else:
            self._give({"row": row, "tokens": tokens})

    def _give(self, message: JsonObject) -> None:
        """Send something to the first rank, if this rank speaks for another copy than its own."""
        if self.replica.post and self.replica.speaks and not leads():
            self.replica.post.send(self.replica.number, message)

    def _take(self, messages: list[JsonObject]) -> None:
        """Add rows to `out`."""
        for message in messages:
            answers.add(self.out, message["row"])
            self.done += 1
            self.tokens += message["tokens"]
            self.say(f"{len(self.kept) + self.done} of {len(self.prompts)} prompts")
