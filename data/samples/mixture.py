"""The prepared parts of a blend, read as one."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data.corpus.sources import SPLITS
from data.samples.blend import Blend
from data.samples.packing import Packed, PackedStream
from data.samples.sampling import BlendedStream, TokenStream, windows
from data.samples.taught import KINDS, Taught
from data.tokens import prepare
from data.tokens.beside import Beside
from support.errors import UserError
from support.json_object import JsonObject


@dataclass(frozen=True)
class PreparedPart:
    """A corpus, the folder that holds its shards, and its share of the samples, in the ratio to the others' shares.

    `teacher` is the name of what a teacher expects there, or the reference of pairs, if any.
    """

    corpus: str
    folder: Path
    share: int
    teacher: str = ""


class Mixture:
    """One or more prepared parts that were made with the same tokeniser.

    Errors: `UserError` where a folder is not whole, or differs from `expected`, which is an earlier `described`. Of
    many processes that open the same shards, one `hashes` them where that is needed.
    """

    def __init__(self, parts: Sequence[PreparedPart], expected: JsonObject | None = None, hashes: bool = True) -> None:
        self.parts, self.expected, self.hashes = tuple(parts), expected, hashes
        before = expected["parts"] if expected else [None] * len(self.parts)
        # A corpus may stand in a blend more than once, but its shards are checked once.
        checked = {
            part.folder: prepare.check(part.folder, then, hashes) for part, then in zip(parts, before, strict=True)
        }
        self.manifests = [checked[part.folder] for part in self.parts]
        self.taught = [Taught(part.folder, part.teacher, hashes) if part.teacher else None for part in self.parts]
        for part, taught, then in zip(self.parts, self.taught, before, strict=True):
            if taught and then and taught.manifest["sha256"] != then[taught.kind]["sha256"]:
                raise UserError(
                    f"what {part.teacher} expects in {part.folder} changed since the run began; restore it or start a "
                    "new run"
                )

    def with_teacher(self, names: Mapping[Path, str], resumed: bool = False) -> "Mixture":
        """The same data with what a teacher expects: in each part's folder that of the name in `names`, or none.

        A `resumed` run has to have expected the same before. Errors: `UserError` as `Taught`, and where it has not.
        """
        parts = [replace(part, teacher=names.get(part.folder, "")) for part in self.parts]
        return Mixture(parts, self.expected if resumed else None, self.hashes)

    @property
    def described(self) -> JsonObject:
        """What a run keeps to know its data again."""
        parts = [
            {"corpus": part.corpus, "share": part.share, "folder": str(part.folder.resolve()), **manifest}
            | ({taught.kind: {"name": part.teacher, **taught.manifest}} if taught else {})
            for part, manifest, taught in zip(self.parts, self.manifests, self.taught, strict=True)
        ]
        return {"bytes_per_token": self.bytes_per_token, "parts": parts}

    @property
    def fingerprint(self) -> str:
        """A hash of the data. Two machines that read the same data have the same, wherever their folders are."""
        parts = [
            [
                part.share,
                manifest["vocab_size"],
                manifest["end_of_document"],
                *(manifest[split]["sha256"] for split in SPLITS),
                *([taught.manifest["sha256"]] if taught else []),
            ]
            for part, manifest, taught in zip(self.parts, self.manifests, self.taught, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """How many bytes of held-out text, or of answers, a token stands for, averaged over the blend."""
        held_out = [manifest["validation"] for manifest in self.manifests]
        of = "answer_" if self.tunes else ""
        each = [facts[f"{of}bytes"] / facts[f"{of}tokens"] for facts in held_out]
        return float(np.average(each, weights=[part.share for part in self.parts]))

    @property
    def tunes(self) -> bool:
        """Whether the parts hold examples to tune on, with their weights."""
        return "answer_tokens" in self.manifests[0]["train"]

    @property
    def end_of_document(self) -> int:
        """The token that closes each document."""
        return int(self.manifests[0]["end_of_document"])

    @property
    def entries(self) -> int:
        """How many ids the tokeniser can give. Every label is below it, even if the model has room for more."""
        return int(self.manifests[0]["vocab_size"])

    def training(self, seq_length: int, seed: int) -> BlendedStream[TokenStream]:
        """The samples of a run in their order. Errors: `UserError` where a part has too few tokens for one."""
        streams = [
            TokenStream(prepare.shards(part.folder, "train"), seq_length, seed, number)
            for number, part in enumerate(self.parts)
        ]
        return BlendedStream(streams, [part.share for part in self.parts])

    def tuning(self, seq_length: int, seed: int) -> BlendedStream[PackedStream]:
        """The same of examples. Errors: `UserError` as `PackedStream`."""
        return BlendedStream(self._packed("train", seq_length, seed), [part.share for part in self.parts])

    def _packed(self, split: str, seq_length: int, seed: int) -> list[PackedStream]:
        return [
            PackedStream(prepare.shards(part.folder, split), seq_length, seed, number)
            for number, part in enumerate(self.parts)
        ]

    def beside(self, split: str, suffix: str, dtype: DTypeLike, columns: int | None = None) -> list[Beside]:
        """What lies beside the shards of each part, for `BlendedStream.beside`. Errors: `UserError` as `Beside`."""
        return [Beside(prepare.shards(part.folder, split), suffix, dtype, columns) for part in self.parts]

    def held_out(self, seq_length: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """At most `most` samples [N, seq_length + 1] to validate on, and which of their labels count [N, seq_length].

        They come in the ratio of the blend. A part with few held-out samples repeats them, so that it does not weigh
        less. An end-of-document token stands in front of each part, so that the part's first token is a label as well.
        """
        held_out = [prepare.shards(part.folder, "validation").read(0, most * seq_length) for part in self.parts]
        cut = [windows(np.insert(tokens, 0, self.end_of_document), seq_length) for tokens in held_out]
        count = min(most, sum(len(samples) for samples, _ in cut))
        parts, indices = Blend([part.share for part in self.parts]).place(np.arange(count, dtype=np.int64))
        chosen = [(cut[part], index % len(cut[part][0])) for part, index in zip(parts, indices, strict=True)]
        return np.stack([one[0][row] for one, row in chosen]), np.stack([one[1][row] for one, row in chosen])

    def held_out_examples(self, seq_length: int, most: int) -> Packed:
        """At most `most` samples of examples to validate on, in the ratio of the blend as `held_out`.

        They are drawn: in the order that they were packed in, the longest examples come first.
        """
        found = [stream.packed(place) for _, stream, place in self._held_out(seq_length, most)]
        return Packed(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def held_out_beside(self, seq_length: int, most: int, rows: Sequence[Beside]) -> NDArray[Any]:
        """What lies beside the tokens of `held_out_examples`. `rows` are those of each part's validation shards."""
        found = [stream.beside(place, rows[part]) for part, stream, place in self._held_out(seq_length, most)]
        return np.concatenate(found)

    def _held_out(self, seq_length: int, most: int) -> Iterator[tuple[int, PackedStream, NDArray[np.int64]]]:
        """The part of each sample, its stream, and its place there [1]."""
        streams = self._packed("validation", seq_length, seed=0)
        count = min(most, sum(stream.samples_per_epoch for stream in streams))
        parts, places = Blend([part.share for part in self.parts]).place(np.arange(count, dtype=np.int64))
        for part, place in zip(parts.tolist(), places, strict=True):
            yield part, streams[part], place[None]


def reopened(described: JsonObject, hashes: bool = True, taught: bool = False) -> Mixture:
    """The mixture that a run kept; with what its teacher expects only where that is to be `taught`.

    Errors: `UserError` where its data are gone or changed.
    """
    names = [next((part[kind]["name"] for kind in KINDS if taught and kind in part), "") for part in described["parts"]]
    parts = [
        PreparedPart(part["corpus"], Path(part["folder"]), part["share"], name)
        for part, name in zip(described["parts"], names, strict=True)
    ]
    return Mixture(parts, described, hashes)
