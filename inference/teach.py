"""A teacher reads the training tokens of a recipe once; what it expects at each is written beside the shards.

Each token is predicted from at least `BEFORE` tokens before it, or half of what the teacher sees where that is less,
but for the first of a stream. A stream is a shard, or a document where documents do not see each other.
"""

import dataclasses
import gc
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.corpus.fetch import file_sha256
from data.samples.mixture import Mixture
from data.samples.taught import TEACHER, manifest_of, record_dtype
from data.tokens import prepare
from data.tokens.shards import Shard, with_suffix
from inference.measuring.texts import words_of
from inference.named import at_step, is_folder, model_of
from recipes.recipe import Recipe
from run import prepared
from run.checkpoints import Chosen, choose
from run.directory import Run, read_recipe
from support.errors import UserError
from support.files import PARTIAL, enough_room, give_name, locked, write_json
from support.json_object import JsonObject
from support.terminal import Say, now_and_then

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.measuring.losses import Measured
    from inference.measuring.texts import Words

LONGEST = 1024  # tokens of a window, where a teacher sees more: its attention costs their square
BEFORE = 256
SCORES = 2**26  # scores of ids that are held at once: 256 MB in fp32


@dataclass(frozen=True)
class Window:
    """Tokens `first … last` of a shard, of which a teacher predicts the last `new`.

    They are predicted from those before them. In front of the first of a stream stands the teacher's own beginning.
    """

    first: int
    last: int
    new: int
    opens: bool = False


def check(recipe: Recipe) -> None:
    """Whether the teacher of a recipe, if it has one, is there and goes on from texts. Errors: `UserError` where not.

    Where the tokeniser is known before the data are prepared, also whether the teacher has the same.
    """
    if recipe.teacher.model:
        from data.tokens import tokenisers

        words, _ = _found(recipe)
        spec = recipe.data.tokeniser
        if not spec.startswith("bpe:"):
            _same_vocabulary(words, tokenisers.obtain(spec, ()).get_vocab(), spec)


def recipe_data(recipe: Recipe, say: Say, options: prepare.Options, at_teacher: Callable[[], None]) -> Mixture:
    """The prepared data of a recipe with what its teacher expects; `at_teacher` is called between the two.

    Errors: `UserError` as `run.prepared.recipe_data`, `check` and `taught`.
    """
    check(recipe)
    data = prepared.recipe_data(recipe, say, options)
    at_teacher()
    return taught(recipe, data, say)


def taught(recipe: Recipe, mixture: Mixture, say: Say, resumed: bool = False) -> Mixture:
    """The data with what the recipe's teacher expects, written now where it is missing; without, if it has none.

    A killed call is gone on from. Safe when several processes arrive together. A `resumed` run has what it began with,
    wherever its teacher is now. Errors: `UserError` where there is no such teacher, it has another vocabulary, or what
    it expects is no longer what a resumed run began with.
    """
    if not recipe.teacher.model or (resumed and all(mixture.taught)):
        return mixture
    asked = dataclasses.asdict(recipe.teacher)
    del asked["soft_share"]  # it belongs to the loss
    words, checkpoint = _found(recipe)
    _same_vocabulary(words, _vocabulary(mixture.parts[0].folder), str(mixture.parts[0].folder / "tokeniser"))
    name = _name(recipe, words, checkpoint)
    folders = {part.folder: name for part in mixture.parts}
    for folder in folders:
        with locked(folder / f".{name}.lock"), enough_room(folder):
            if not manifest_of(folder, name).exists():
                _Lesson(recipe, folder, name, _loaded(words, checkpoint), say).write(asked)
                free()
    return mixture.with_teacher(folders, resumed)


def missing(run: Run) -> list[str]:
    """What of the data of a run is not prepared yet: corpora, or else what its teacher expects. Writes nothing.

    Errors: `UserError` as `taught`.
    """
    if (lost := prepared.missing(run)) or not run.recipe.teacher.model or run.resume:
        return lost
    name = _name(run.recipe, *_found(run.recipe))
    folders = prepared.found_data(run.recipe).values()
    whole = all(folder and manifest_of(folder, name).exists() for folder in folders)
    return [] if whole else [f"what the teacher {run.recipe.teacher.model} expects"]


def _found(recipe: Recipe) -> "tuple[Words, Chosen | None]":
    """The teacher's tokeniser, and of a run the checkpoint."""
    path, which = at_step(model_of(recipe.teacher.model), None)
    if is_folder(path):
        return words_of(path), None
    if (objective := read_recipe(path).model.objective) != "causal":
        raise UserError(f"teacher.model {path} is of the {objective} objective; give a causal model")
    return words_of(path), choose(path, which)


def _loaded(words: "Words", checkpoint: Chosen | None) -> "Measured":
    from inference.measuring.models import measured_folder, measured_run

    if checkpoint:
        return measured_run(words, checkpoint)
    import torch

    from model.engine.precision import slowdown

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = slowdown(torch.bfloat16, device) < 1  # in software it takes several times as long as fp32
    return measured_folder(words, torch.bfloat16 if fast else torch.float32)


def free() -> None:
    """Give the memory of a model back: this process lives on beside the ranks, which train on the same GPU."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _vocabulary(folder: Path) -> dict[str, int]:
    from data.tokens import tokenisers

    return tokenisers.load(str(folder / "tokeniser")).get_vocab()


def _same_vocabulary(words: "Words", ours: dict[str, int], where: str) -> None:
    theirs = words.tokeniser.get_vocab()
    if theirs != ours:
        same = sum(ours.get(token) == number for token, number in theirs.items())
        source = words.path if is_folder(words.path) else words.path / "tokeniser"
        raise UserError(
            f"the teacher {words.path} has another vocabulary ({len(theirs):,} entries) than {where} ({len(ours):,}, "
            f"{same:,} of them alike); set data.tokeniser={source}, or give another teacher"
        )


def _name(recipe: Recipe, words: "Words", checkpoint: Chosen | None) -> str:
    """The name of what a teacher expects: by the state of its files, and by all that the records depend on."""
    home = checkpoint.path if checkpoint else words.path
    asked = [recipe.teacher.top_k, recipe.teacher.temperature, recipe.data.separate_documents, LONGEST, BEFORE]
    return f"{TEACHER}-{digest_of(home, *asked)}"


def digest_of(home: Path, *asked: object) -> str:
    """A short hash of the state of a model's files, and of what it is asked."""
    stats = {path.name: path.stat() for path in sorted(home.iterdir()) if path.is_file()}
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    return hashlib.sha256(json.dumps([files, *asked]).encode()).hexdigest()[:8]


class _Lesson:
    """A teacher reads the training shards of a folder."""

    def __init__(self, recipe: Recipe, folder: Path, name: str, teacher: "Measured", say: Say) -> None:
        self.recipe, self.folder, self.name, self.teacher, self.say = recipe, folder, name, teacher, say
        self.top_k = min(recipe.teacher.top_k, teacher.entries)
        self.dtype = record_dtype(self.top_k, teacher.entries)

    def write(self, asked: JsonObject) -> None:
        """Write a file a shard, then the manifest."""
        shards, listed = prepare.shards(self.folder, "train"), list[JsonObject]()
        total, before = shards.num_tokens, 0
        size = total * self.dtype.itemsize / 1e9
        self.say(f"teacher: {self.recipe.teacher.model} reads {total:,} tokens, and {size:,.2f} GB are written")
        tell = progress(self.say, total, TEACHER)
        for shard in shards.shards:
            path = with_suffix(shard.prefix, f".{self.name}")
            if not path.exists():
                scratch = with_suffix(path, PARTIAL)
                self._read(shard, scratch, before, tell)
                give_name(scratch, path)
            before += shard.num_tokens
            listed.append({"name": shard.prefix.name, "tokens": shard.num_tokens, "sha256": file_sha256(path)})
        whole = hashlib.sha256("".join(entry["sha256"] for entry in listed).encode()).hexdigest()
        described = {"asked": asked, "temperature": self.recipe.teacher.temperature, "top_k": self.top_k}
        facts = {"entries": self.teacher.entries, "tokens": total, "bytes": total * self.dtype.itemsize}
        write_json(manifest_of(self.folder, self.name), {**described, **facts, "sha256": whole, "shards": listed})

    def _read(self, shard: Shard, path: Path, before: int, tell: Callable[[int], None]) -> None:
        """Append the records of a shard to `path`, from where a killed process was."""
        context = min(self.teacher.context, LONGEST)
        size, rows = self.dtype.itemsize, max(1, SCORES // self.teacher.width // context)
        lengths = shard.lengths.tolist() if self.recipe.data.separate_documents else [shard.num_tokens]
        windows = windows_of(lengths, context)
        with open(path, "ab") as stream:
            held, done = stream.tell() // size, 0
            while batch := list(itertools.islice(windows, rows)):
                end = done + sum(window.new for window in batch)
                if end > held:
                    stream.truncate(done * size)
                    stream.write(self._records(shard, batch).tobytes())
                    stream.flush()
                    os.fsync(stream.fileno())
                    tell(before + end)
                done = end

    def _records(self, shard: Shard, batch: list[Window]) -> "NDArray[np.void]":
        """The records of the new tokens of some windows, in their order."""
        import torch

        inputs = np.full((len(batch), max(window.last - window.first for window in batch)), self.teacher.end, np.int64)
        for row, window in zip(inputs, batch, strict=True):
            row[window.opens : window.last - window.first] = shard.tokens[window.first : window.last - window.opens]
            if window.opens:
                row[0] = self.teacher.begin
        documents = self.teacher.documents(inputs)
        tokens_BS, documents_BS = (
            None if each is None else torch.from_numpy(each).to(self.teacher.device) for each in (inputs, documents)
        )
        assert tokens_BS is not None
        result = np.empty(sum(window.new for window in batch), self.dtype)
        with torch.inference_mode():
            scores_BSV = self.teacher.scores(tokens_BS, None, documents_BS)
            ends = [window.last - window.first for window in batch]
            kept = [row[end - each.new : end] for row, end, each in zip(scores_BSV, ends, batch, strict=True)]
            scores_NV = torch.cat(kept)[:, : self.teacher.entries].float() / self.recipe.teacher.temperature
            odds_NV = scores_NV.log_softmax(-1)
            known = odds_NV.topk(self.top_k)
            others = odds_NV.scatter_(-1, known.indices, -torch.inf).logsumexp(-1, keepdim=True)
        if not bool(known.values.isfinite().all()):
            raise UserError(f"the teacher {self.recipe.teacher.model} gives odds that are not finite; take another")
        result["ids"] = known.indices.cpu().numpy()
        result["odds"] = torch.cat((known.values, others), -1).cpu().numpy()
        return result


def windows_of(lengths: Iterable[int], context: int) -> Iterator[Window]:
    """Windows of at most `context` tokens over streams of these lengths, end to end: each token is new in one."""
    step, begin = context - min(context // 2, BEFORE), 0
    for length in lengths:
        end, new = begin + length, begin + context
        if length:
            yield Window(begin, min(new, end), min(context, length), opens=True)
        for first in range(new, end, step):
            last = min(first + step, end)
            yield Window(first + step - context - 1, last - 1, last - first)
        begin = end


def progress(say: Say, total: int, who: str) -> Callable[[int], None]:
    """Says now and then how many of the tokens are read, how fast, and how long the rest will take."""
    tell, began = now_and_then(say), time.monotonic()
    first: list[int] = []

    def told(done: int) -> None:
        first.append(done)
        rate = (done - first[0]) / (time.monotonic() - began)
        left = f", {int((total - done) / rate) // 60}:{int((total - done) / rate) % 60:02d} left" if rate else ""
        tell(f"{who}: read {done:,} of {total:,} tokens, {rate:,.0f} tokens/s{left}")

    return told
