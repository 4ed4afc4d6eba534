"""The pipeline form: the same pieces as `model/gpt.py`, listed for DeepSpeed's PipelineModule."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from model.config import GPTConfig
from model.engine.inside import cut_pipeline, groups_of
from model.gpt import GPT, Block, Remember, document_mask, places_in_documents
from model.grid import Grid, make_grid, split
from model.layers import Norm, PositionEmbedding, TokenEmbedding
from model.layout import Layout, stage_boundaries
from model.loss import other_of, weighted_loss
from model.parallel import Parallel

BEFORE_BLOCKS = 2  # the token embedding and the positions
EMBED = "embed"


class Apart:
    """What the tokens of the micro-batch that is computed may see, and their places, where documents are apart.

    Every rank of a pipeline reads the micro-batches itself, and each stage computes them in order: so nothing but
    activations is sent from stage to stage.
    """

    def __init__(self, causal: bool) -> None:
        self.causal = causal
        self.coming: Iterator[Tensor | None] = iter(())
        self.visible_BSS: Tensor | None = None
        self.places_BS: Tensor | None = None

    def expect(self, documents: Iterator[Tensor | None]) -> None:
        """Take the documents [B, S] of the micro-batches to come, None for those that are not apart."""
        self.coming = documents

    def go_on(self) -> None:
        """The next micro-batch begins."""
        documents_BS = next(self.coming, None)
        self.visible_BSS = None if documents_BS is None else document_mask(documents_BS, self.causal)
        self.places_BS = None if documents_BS is None else places_in_documents(documents_BS)


class PlacedEmbedding(PositionEmbedding):
    """The positions in a pipeline."""

    def __init__(self, config: GPTConfig, parallel: Parallel, apart: Apart) -> None:
        super().__init__(config, parallel)
        self.apart = apart

    def forward(self, x_BSH: Tensor, places_BS: Tensor | None = None) -> Tensor:
        return super().forward(x_BSH, self.apart.places_BS)


class StagedBlock(Block):
    """A block in a pipeline."""

    def __init__(self, config: GPTConfig, parallel: Parallel, recompute: str, apart: Apart) -> None:
        super().__init__(config, parallel, recompute)
        self.apart = apart

    def forward(self, x_BSH: Tensor, visible_BSS: Tensor | None = None, remember: Remember | None = None) -> Tensor:
        return super().forward(x_BSH, self.apart.visible_BSS)


class GPTPipeline(PipelineModule):
    """The decoder cut into `layout.pp` stages; a process builds its own stage only."""

    def __init__(
        self,
        config: GPTConfig,
        grid: Grid,
        recompute: tuple[str, ...],
        entries: int,
    ) -> None:
        layout, parallel = grid.layout, grid.parallel
        self.config, self.parallel = config, parallel
        self.boundaries, self.apart = stage_boundaries(config, layout.pp), Apart(config.objective == "causal")
        data = grid.data.size  # Ulysses ranks count as data ranks to DeepSpeed
        # The tied matrix is alone in its module, because DeepSpeed takes every parameter of a tied module for a copy.
        layers = [
            TiedLayerSpec(EMBED, TokenEmbedding, config, parallel, tied_weight_attr="weight"),
            LayerSpec(PlacedEmbedding, config, parallel, self.apart),
            *(LayerSpec(StagedBlock, config, parallel, what, self.apart) for what in recompute),
            LayerSpec(Norm, config.hidden_size, parallel),
            TiedLayerSpec(EMBED, TokenEmbedding, config, parallel, forward_fn=_logits, tied_weight_attr="weight"),
        ]
        topology = PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=data)
        axes = axes_of(layout, grid.world_size)
        with groups_of(axes, {"data": grid.data.group, "tensor": grid.tp.group}, split):
            super().__init__(layers, topology=topology, loss_fn=partial(_loss, entries, parallel))

    def _partition_layers(self, method: str = "") -> None:
        """Cut by cost, see `stage_boundaries`.

        DeepSpeed's own methods count layers, or build every layer on every rank to count its parameters. This overrides
        a hook of its own (0.19.8, runtime/pipe/module.py). Shown by
        test_a_pipeline_is_cut_by_cost_and_not_as_deepspeed_would.
        """
        cut_pipeline(self, self.boundaries)

    def forward(self, forward_input: Tensor) -> Any:
        """This stage's share of a micro-batch, the next one of those that `apart` expects."""
        self.apart.go_on()
        return super().forward(forward_input)

    def plain_names(self) -> dict[nn.Parameter, str]:
        """The name that each parameter of this stage has in the plain `GPT`."""
        names = {}
        for name, parameter in self.named_parameters():
            first, rest = name.split(".", 1)
            if first == "tied_modules":
                names[parameter] = rest
            else:
                names[parameter] = f"{self._plain_layer(int(first))}.{rest}"
        return names

    def _plain_layer(self, index: int) -> str:
        if index == BEFORE_BLOCKS - 1:
            return "position"
        block = index - BEFORE_BLOCKS
        return f"blocks.{block}" if block < self.config.num_layers else "final_norm"


def axes_of(layout: Layout, world_size: int) -> dict[str, list[list[int]]]:
    """The axes that DeepSpeed's pipeline sends over; the groups of each hold every rank once.

    `model` are the ranks of one replica, `tied` the first and the last stage, which share the embedding, beside the
    others. Nothing is sent over a tensor axis of degree 1.
    """
    axes = {name: groups for name, groups in layout.groups(world_size).items() if name in ("data", "pipeline")}
    replicas = world_size // (layout.tp * layout.pp)  # Ulysses ranks are replicas to DeepSpeed
    axes["model"] = [[rank for rank in range(world_size) if rank // layout.tp % replicas == r] for r in range(replicas)]
    axes["tied"] = [some for ranks in axes["pipeline"] for some in ([ranks[0], ranks[-1]], ranks[1:-1]) if some]
    return axes | ({"tensor": layout.groups(world_size)["tensor"]} if layout.tp > 1 else {})


def _logits(embed: TokenEmbedding, x_BSH: Tensor) -> Tensor:
    return embed.logits(x_BSH)


def _loss(entries: int, parallel: Parallel, logits_BSV: Tensor, targets: tuple[Tensor, ...]) -> Any:
    labels_BS, weights_BS, *others = targets
    # DeepSpeed averages over Ulysses ranks as it does over data ranks, but each holds only a part of the sum.
    given = (labels_BS, weights_BS, entries)
    loss = weighted_loss(logits_BSV, *given, parallel.tp, other_of(others), parallel.ulysses)
    return loss * parallel.ulysses.size


class _MetaPipeline(GPTPipeline):
    """The pipeline on torch's meta device: shapes without memory."""

    def to(self, *args: Any, **kwargs: Any) -> "_MetaPipeline":
        """Stay. PipelineModule moves itself to the accelerator when it is built; meta tensors cannot move."""
        return self


@contextmanager
def pretended_world(layout: Layout, world_size: int, rank: int) -> Iterator[Grid]:
    """One process takes a rank's place in a world of that size. The process groups send nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.setdefault("LOCAL_RANK", "0")  # PipelineModule asks for it
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        deepspeed.init_distributed(dist_backend="fake")
        yield make_grid(layout)
    finally:
        dist.destroy_process_group()


def meta_model(config: GPTConfig, grid: Grid, recompute: tuple[str, ...], dtype: torch.dtype) -> nn.Module:
    """A rank's part of the model on the meta device, as training builds it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            if grid.layout.pp == 1:
                return GPT(config, grid.parallel, recompute)
            return _MetaPipeline(config, grid, recompute, config.vocab_size)
    finally:
        torch.set_default_dtype(before)
