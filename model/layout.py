"""The degrees of a run, and the checks that a model can be cut that way. Imports no torch.

Ranks are numbered as DeepSpeed's PipeModelDataParallelTopology does: tensor innermost, then data, then pipeline:
rank = (pp_rank * data + data_rank) * tp + tp_rank, where data = dp * ulysses and the Ulysses rank is the inner one.
"""

from dataclasses import dataclass
from typing import ClassVar

from model.config import GPTConfig
from support.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How many ways each axis is split. The data degree is not here: it follows from the world size.

    `tp` tensor, `pp` pipeline, `ulysses` sequence (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509);
    `sequence_parallel` splits the sequence over the tensor ranks between the sliced layers too (Korthikanti et al.
    2022, arXiv:2205.05198, section 4.2.2).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    tp: int = 1
    pp: int = 1
    ulysses: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "ulysses"):
            if getattr(self, name) < 1:
                raise UserError(f"layout.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that share one copy of the model and one micro-batch."""
        return self.tp * self.pp * self.ulysses

    def data_degree(self, world_size: int) -> int:
        """Copies of the model that `world_size` ranks hold. Errors: `UserError` with the nearest sizes that divide."""
        each = self.ranks_per_replica
        if world_size % each:
            below = world_size - world_size % each
            nearest = [str(size) for size in (below, below + each) if size]
            raise UserError(
                f"layout tp {self.tp} x pp {self.pp} x ulysses {self.ulysses} = {each} does not divide {world_size} "
                f"ranks; the nearest numbers of ranks that it does: {', '.join(nearest)}"
            )
        return world_size // each

    def groups(self, world_size: int) -> dict[str, list[list[int]]]:
        """The ranks of each group of every axis, in the order of `world_size` ranks; see the top of this file.

        `data` spans data and Ulysses ranks. Errors: `UserError` where the layout does not divide the world.
        """
        dp = self.data_degree(world_size)

        def at(p: int, d: int, u: int, t: int) -> int:
            return ((p * dp + d) * self.ulysses + u) * self.tp + t

        stages, data, shares, slices = range(self.pp), range(dp), range(self.ulysses), range(self.tp)
        return {
            "tensor": [[at(p, d, u, t) for t in slices] for p in stages for d in data for u in shares],
            "ulysses": [[at(p, d, u, t) for u in shares] for p in stages for d in data for t in slices],
            "data": [[at(p, d, u, t) for d in data for u in shares] for p in stages for t in slices],
            "pipeline": [[at(p, d, u, t) for p in stages] for d in data for u in shares for t in slices],
        }

    def check(self, model: GPTConfig) -> None:
        """Refuse a model that cannot be cut this way. Errors: `UserError` with the nearest degrees that can."""
        cuts = {
            "model.num_attention_heads": (model.num_attention_heads, self.tp * self.ulysses, "tp x ulysses"),
            "model.ffn_hidden_size": (model.ffn_hidden_size, self.tp, "tp"),
            "the padded vocabulary": (model.padded_vocab_size, self.tp, "tp"),
            "model.seq_length": (model.seq_length, self.ulysses * self._sequence_cuts, "the sequence's"),
        }
        for what, (size, degree, name) in cuts.items():
            if size % degree:
                possible = [d for d in range(1, size + 1) if size % d == 0]
                nearest = sorted(sorted(possible, key=lambda d: abs(d - degree))[:2])
                raise UserError(
                    f"{what} {size} does not divide by {name} degree {degree}; the nearest degrees that it does: "
                    f"{', '.join(map(str, nearest))}"
                )
        if self.pp > model.num_layers:
            raise UserError(f"layout.pp {self.pp} is more than model.num_layers {model.num_layers}; use at most that")
        if self.sequence_parallel and self.tp == 1:
            raise UserError("layout.sequence_parallel needs layout.tp above 1: it splits over the tensor ranks")

    @property
    def _sequence_cuts(self) -> int:
        return self.tp if self.sequence_parallel else 1


def stage_boundaries(model: GPTConfig, stages: int) -> list[int]:
    """Where to cut the pipeline's layers so that the costliest stage costs as little as possible.

    The layers are the token embedding, the positions, the blocks, the final norm and the head. The cost of a layer is
    that of its matrix products. The head's is vocabulary x hidden; the embedding only looks rows up, which costs next
    to nothing. Every stage has at least one block. Of equally good cuts the most even one is taken. Returns
    stages + 1 indices.
    """
    h = model.hidden_size
    block = 4 * h * h + 2 * h * model.ffn_hidden_size + 2 * model.seq_length * h
    head = model.padded_vocab_size * h
    # Blocks per stage: the last stage also has the head, so it may have fewer.
    best: tuple[float, int] | None = None
    for last in range(1, model.num_layers - (stages - 1) + 1):
        most = -(-(model.num_layers - last) // (stages - 1)) if stages > 1 else 0
        if stages == 1 and last != model.num_layers:
            continue
        cost = max(most * block, last * block + head)
        if best is None or cost <= best[0]:
            best = (cost, last)
    assert best is not None
    last = best[1]
    counts = [(model.num_layers - last) // (stages - 1)] * (stages - 1) if stages > 1 else []
    for extra in range((model.num_layers - last) % (stages - 1) if stages > 1 else 0):
        counts[extra] += 1
    counts.append(last)
    cuts = [0]
    for number, blocks in enumerate(counts):
        edge = (2 if number == 0 else 0) + (2 if number == stages - 1 else 0)
        cuts.append(cuts[-1] + blocks + edge)
    return cuts
