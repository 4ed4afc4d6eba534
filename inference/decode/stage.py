"""A rank's part of a model for decoding: the blocks of its pipeline stage, cut for its tensor rank."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inference.decode.packed import pack
from model.checkpoint.index import Fragment
from model.checkpoint.overlay import reader_of
from model.config import GPTConfig
from model.gpt import GPT, Block, Remember
from model.layers import Norm, PositionEmbedding, TokenEmbedding
from model.layout import stage_boundaries
from model.parallel import SOLO, Parallel, slice_of
from support.errors import UserError

BEFORE_BLOCKS = 2  # layers of a pipeline: the token embedding and the positions


class Stage(nn.Module):
    """The pieces of `model/gpt.py` that a rank needs, under the names that they have in the plain `GPT`."""

    def __init__(self, config: GPTConfig, parallel: Parallel, blocks: range) -> None:
        super().__init__()
        self.config, self.parallel = config, parallel
        self.first, self.last = blocks.start == 0, blocks.stop == config.num_layers
        if self.first or self.last:
            self.embed = TokenEmbedding(config, parallel)
        if self.first:
            self.position = PositionEmbedding(config, parallel)
        self.blocks = nn.ModuleDict({str(number): Block(config, parallel, "") for number in blocks})
        if self.last:
            self.final_norm = Norm(config.hidden_size, parallel)

    def forward(
        self,
        x: Tensor,
        places_BS: Tensor,
        mask_BSS: Tensor | None = None,
        remembers: list[Remember] | None = None,
    ) -> Tensor:
        """Token ids [B, S] on the first stage, else what the stage before gave [B, S, H], to [B, S, H].

        `places_BS` are the tokens' positions. `mask_BSS` says which token sees which, or is added to the scores, and
        `remembers` is a cache's for each block; see `Cache`.
        """
        x_BSH = self.position(self.embed(x), places_BS) if self.first else x
        for number, block in enumerate(self.blocks.values()):
            x_BSH = block(x_BSH, mask_BSS, remembers[number] if remembers else None)
        return self.final_norm(x_BSH) if self.last else x_BSH

    def logits(self, x_BSH: Tensor) -> Tensor:
        """Scores of all ids [B, S, V] on the last stage, from all tensor ranks' rows."""
        scores_BSV, tp = self.embed.logits(x_BSH), self.parallel.tp
        if tp.size == 1:
            return scores_BSV
        parts = [torch.empty_like(scores_BSV) for _ in range(tp.size)]
        dist.all_gather(parts, scores_BSV.contiguous(), group=tp.group)
        return torch.cat(parts, -1)


def blocks_of(config: GPTConfig, stages: int, stage: int) -> range:
    """The blocks of a stage, as training cuts them."""
    cuts = [min(max(0, cut - BEFORE_BLOCKS), config.num_layers) for cut in stage_boundaries(config, stages)]
    return range(cuts[stage], cuts[stage + 1])


def live_stage(config: GPTConfig, parallel: Parallel, stages: int, stage: int, weights: dict[str, Tensor]) -> Stage:
    """A rank's part of a model whose weights somebody else holds and may change, by their names: nothing is copied."""
    with torch.device("meta"):
        result = Stage(config, parallel, blocks_of(config, stages, stage))
    result.load_state_dict({name: weights[name] for name, _ in result.named_parameters()}, assign=True)
    return result.eval()


@torch.no_grad()
def load_stage(
    config: GPTConfig,
    checkpoint: Path,
    parallel: Parallel = SOLO,
    stages: int = 1,
    stage: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Stage:
    """Read a rank's part of a checkpoint that any layout has written, one tensor at a time.

    Errors: `UserError` where the checkpoint is of another shape, or the model is of the masked objective.
    """
    if config.objective == "masked":
        raise UserError(
            "a model of the masked objective cannot go on from a text: it guesses tokens between others; stagecraft "
            "evaluate gives its pseudo-perplexity"
        )
    with torch.device("meta"):
        everything = {name for name, _ in GPT(config).named_parameters()}
        result = Stage(config, parallel, blocks_of(config, stages, stage))
    reader = reader_of(checkpoint)
    if strangers := sorted(everything ^ set(reader.names())):
        raise UserError(
            f"checkpoint {checkpoint} and the recipe of its run do not have the same parameters, for example "
            f"{strangers[0]}; use the recipe that wrote it"
        )
    values = {}
    for name, parameter in result.named_parameters():
        whole = Fragment(name, 0, math.prod(parameter.shape), 0, tuple(parameter.shape), slice_of(parameter))
        values[name] = reader.read(whole).view(parameter.shape).to(device, dtype)
    result.load_state_dict(values, assign=True)
    pack(result)
    return result.eval()
