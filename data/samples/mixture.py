"""The prepared parts of a blend, read as one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.corpus.sources import SPLITS
from data.samples.blend import Blend
from data.samples.sampling import BlendedStream, TokenStream, windows
from data.tokens import prepare
from support.json_object import JsonObject


@dataclass(frozen=True)
class PreparedPart:
    """A corpus, the folder that holds its shards, and its share of the samples: a whole number beside the others'."""

    corpus: str
    folder: Path
    share: int


class Mixture:
    """One or more prepared parts that were made with the same tokeniser.

    Errors: `UserError` where a folder is not whole, or not what `expected`, an earlier `described`, says of it.
    """

    def __init__(self, parts: Sequence[PreparedPart], expected: JsonObject | None = None) -> None:
        self.parts = tuple(parts)
        before = expected["parts"] if expected else [None] * len(self.parts)
        # A corpus may stand in a blend more than once: its shards are looked at once.
        checked = {part.folder: prepare.check(part.folder, then) for part, then in zip(parts, before, strict=True)}
        self.manifests = [checked[part.folder] for part in self.parts]

    @property
    def described(self) -> JsonObject:
        """What a run keeps of its data."""
        parts = [
            {"corpus": part.corpus, "share": part.share, "folder": str(part.folder.resolve()), **manifest}
            for part, manifest in zip(self.parts, self.manifests, strict=True)
        ]
        return {"bytes_per_token": self.bytes_per_token, "parts": parts}

    @property
    def fingerprint(self) -> str:
        """A hash of what is read: the same on two machines that read the same, wherever their folders are."""
        parts = [
            [
                part.share,
                manifest["vocab_size"],
                manifest["end_of_document"],
                *(manifest[split]["sha256"] for split in SPLITS),
            ]
            for part, manifest in zip(self.parts, self.manifests, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of held-out text that a token stands for, over the blend."""
        held_out = [manifest["validation"] for manifest in self.manifests]
        each = [facts["bytes"] / facts["tokens"] for facts in held_out]
        return float(np.average(each, weights=[part.share for part in self.parts]))

    @property
    def end_of_document(self) -> int:
        """The token that closes each document."""
        return int(self.manifests[0]["end_of_document"])

    @property
    def entries(self) -> int:
        """Ids that the tokeniser can give: those below. No label is above, whatever the model has room for."""
        return int(self.manifests[0]["vocab_size"])

    def training(self, seq_length: int, seed: int) -> BlendedStream:
        """The samples of a run in their order. Errors: `UserError` where a part has too few tokens for one."""
        streams = [
            TokenStream(prepare.shards(part.folder, "train"), seq_length, seed, number)
            for number, part in enumerate(self.parts)
        ]
        return BlendedStream(streams, [part.share for part in self.parts])

    def held_out(self, seq_length: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """At most `most` samples [N, seq_length + 1] to validate on, and which of their labels count [N, seq_length].

        They come in the ratio of the blend; a part with few held-out samples repeats them rather than weigh less. An
        end-of-document token stands in front of each part, so that its first token is a label as well.
        """
        held_out = [prepare.shards(part.folder, "validation").read(0, most * seq_length) for part in self.parts]
        cut = [windows(np.insert(tokens, 0, self.end_of_document), seq_length) for tokens in held_out]
        count = min(most, sum(len(samples) for samples, _ in cut))
        parts, indices = Blend([part.share for part in self.parts]).place(np.arange(count, dtype=np.int64))
        chosen = [(cut[part], index % len(cut[part][0])) for part, index in zip(parts, indices, strict=True)]
        return np.stack([one[0][row] for one, row in chosen]), np.stack([one[1][row] for one, row in chosen])


def reopened(described: JsonObject) -> Mixture:
    """The mixture that a run kept. Errors: `UserError` where it is not there any more, or changed."""
    parts = [PreparedPart(part["corpus"], Path(part["folder"]), part["share"]) for part in described["parts"]]
    return Mixture(parts, described)
