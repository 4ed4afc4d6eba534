"""What the model that a run of preferences begins with gives its pairs: read once, written beside the shards."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.corpus.fetch import file_sha256
from data.samples.mixture import Mixture
from data.samples.packing import PackedStream
from data.samples.taught import REFERENCE, manifest_of, splits
from data.tokens import prepare
from data.tokens.shards import Shard, Shards, with_suffix
from inference import teach
from inference.measuring.texts import words_of
from run.checkpoints import choose
from run.directory import Run
from run.prepared import run_data
from support.files import PARTIAL, enough_room, give_name, locked, write_json
from support.json_object import JsonObject
from support.terminal import Say

if TYPE_CHECKING:
    from inference.measuring.losses import Measured


def data_of(run: Run, say: Say, hashes: bool = True) -> Mixture:
    """The data of a run, with what its teacher expects, or the reference of its pairs: written now where it is missing.

    Safe when several processes arrive together. A resumed run has what it began with. Errors: `UserError` as
    `run.prepared.run_data` and `teach.taught`.
    """
    data = run_data(run, say, hashes)
    if not run.recipe.dpo.beta:
        return teach.taught(run.recipe, data, say, run.resume)
    if run.resume and all(data.taught):
        return data
    assert run.parent, "a run that tunes has a parent"
    home = Path(run.parent.path)
    words, checkpoint = words_of(home), choose(home, str(run.parent.step))
    name = f"{REFERENCE}-{teach.digest_of(checkpoint.path)}"
    folders = dict.fromkeys((part.folder for part in data.parts), name)
    for folder in folders:
        with locked(folder / f".{name}.lock"), enough_room(folder):
            if not manifest_of(folder, name).exists():
                from inference.measuring.models import measured_run

                write(folder, name, measured_run(words, checkpoint), f"{home}@{run.parent.step}", say)
                teach.free()
    return data.with_teacher(folders, run.resume)


def write(folder: Path, name: str, model: "Measured", asked: str, say: Say) -> None:
    """Write a file a shard, then the manifest. What a killed call has finished stays."""
    opened = [shard for split in splits(REFERENCE) for shard in prepare.shards(folder, split).shards]
    total, listed = sum(shard.num_tokens for shard in opened), list[JsonObject]()
    say(f"reference: {asked} reads {total:,} tokens")
    tell, done = teach.progress(say, total, REFERENCE), 0
    for shard in opened:
        path = with_suffix(shard.prefix, f".{name}")
        if not path.exists():
            scratch = with_suffix(path, PARTIAL)
            for tokens in _read(shard, scratch, model):
                tell(done + tokens)
            give_name(scratch, path)
        done += shard.num_tokens
        listed.append({"name": shard.prefix.name, "tokens": shard.num_tokens, "sha256": file_sha256(path)})
    whole = hashlib.sha256(json.dumps([entry["sha256"] for entry in listed]).encode()).hexdigest()
    write_json(manifest_of(folder, name), {"asked": {"model": asked}, "sha256": whole, "shards": listed})


def _read(shard: Shard, path: Path, model: "Measured") -> Iterator[int]:
    """Write the logarithm of the probability of each token of a shard that is learned, and 0 of the others.

    Yields now and then how many tokens are read.
    """
    stream = PackedStream(Shards([shard.prefix]), model.context, seed=0)
    odds, done = np.zeros(shard.num_tokens, np.float32), 0
    for first in range(0, stream.samples_per_epoch, model.rows):
        spans = [stream.of(index) for index in range(first, min(first + model.rows, stream.samples_per_epoch))]
        each = stream.read(spans)
        losses = model.losses(each.tokens[:, :-1], each.tokens[:, 1:], None, each.examples[:, :-1]).cpu().numpy()
        found = np.where(each.weights[:, 1:] > 0, -losses, 0)
        for row, sample in zip(found, spans, strict=True):
            place = 0  # of a span's first token, which is no label
            for start, stop in sample:
                odds[start + 1 : stop] = row[place : place + stop - start - 1]
                place += stop - start
                done += stop - start
        yield done
    odds.tofile(path)
