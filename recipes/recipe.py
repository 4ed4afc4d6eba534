"""The vocabulary that recipes are written in. Reading a recipe imports neither torch nor DeepSpeed.

A recipe is a frozen declaration, checked when it is built. It owns everything about a run but how the engine runs it
(the DeepSpeed JSON) and how many processes there are (the launcher).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar

from model.config import GPTConfig, LoRA
from model.layout import Layout
from recipes.data import BASE as BASE
from recipes.data import Data as Data
from recipes.data import Part as Part
from recipes.preference import DPO
from recipes.teacher import Teacher
from support.errors import UserError
from support.json_object import JsonObject

STRICT: dict[str, str] = {"extra": "forbid"}  # pydantic: an unknown field is an error


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101). `lr` is the peak; decay acts on matrices only."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr is {self.lr}; it must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas are {self.betas}; each must be in [0, 1)")
        for name in ("eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True)
class Schedule:
    """Token budget and learning rate: linear warmup, then cosine decay to `min_lr_ratio` of the peak, then flat."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    train_tokens: int
    warmup_tokens: int
    decay_tokens: int
    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_tokens < self.decay_tokens:
            raise UserError(
                f"schedule.warmup_tokens {self.warmup_tokens} must be at least 0 and below schedule.decay_tokens "
                f"{self.decay_tokens}"
            )
        if self.train_tokens < 1:
            raise UserError(f"schedule.train_tokens is {self.train_tokens}; it must be at least 1")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"schedule.min_lr_ratio is {self.min_lr_ratio}; it must be from 0 to 1")

    def lr_ratio(self, tokens: int) -> float:
        """Learning rate after `tokens` tokens, as a share of the peak."""
        if tokens < self.warmup_tokens:
            return tokens / self.warmup_tokens
        done = min(1.0, (tokens - self.warmup_tokens) / (self.decay_tokens - self.warmup_tokens))
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Batch:
    """`global_batch` sequences a step over all ranks; `micro_batch` sequences a rank computes at once.

    A ramp is optional: the global batch begins at `ramp_start` and grows by `ramp_increment`, each size for an equal
    part of the first `ramp_samples` sequences (as Megatron-LM's rampup-batch-size).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    global_batch: int
    micro_batch: int
    ramp_start: int = 0
    ramp_increment: int = 0
    ramp_samples: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"batch.{name} is {getattr(self, name)}; it must be at least 1")
        ramp = (self.ramp_start, self.ramp_increment, self.ramp_samples)
        if any(ramp):
            if min(ramp) < 1:
                raise UserError("a batch-size ramp needs batch.ramp_start, ramp_increment and ramp_samples above 0")
            if self.ramp_start >= self.global_batch or (self.global_batch - self.ramp_start) % self.ramp_increment:
                raise UserError(
                    f"the batch-size ramp does not reach batch.global_batch {self.global_batch} from ramp_start "
                    f"{self.ramp_start} in steps of ramp_increment {self.ramp_increment}"
                )

    @property
    def ramp(self) -> tuple[int, ...]:
        """The smaller global batches that a run begins with, in order."""
        return tuple(range(self.ramp_start, self.global_batch, self.ramp_increment)) if self.ramp_start else ()

    def ahead(self, consumed_samples: int) -> tuple[int, ...]:
        """The smaller global batches that are still to come after that many sequences, in order."""
        return self.ramp[consumed_samples * len(self.ramp) // self.ramp_samples :] if self.ramp else ()

    def at(self, consumed_samples: int) -> int:
        """The global batch after that many sequences."""
        if consumed_samples >= self.ramp_samples:
            return self.global_batch
        return self.ramp[consumed_samples * len(self.ramp) // self.ramp_samples]


@dataclass(frozen=True)
class Cluster:
    """The machines that a recipe was planned for."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    gpu: str
    nodes: int
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise UserError(f"cluster.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def world_size(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps, and how much of them.

    A run saves every `save_every` steps, or every `save_minutes`; where both are 0, as often as loses least
    (`planner.saving`). A step of a large model takes most of a minute, so there minutes say more than steps. The last
    `keep_checkpoints` stay, the one with the best validation loss, and where `keep_every` is not 0 those of every step
    that it divides.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    log_every: int = 10
    evaluate_every: int = 1000
    evaluate_samples: int = 512
    save_every: int = 0
    save_minutes: float = 0.0
    keep_checkpoints: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            may_be_none = entry.name in ("save_every", "save_minutes", "keep_every")
            value, least = getattr(self, entry.name), 0 if may_be_none else 1
            if not least <= value < math.inf:
                raise UserError(f"intervals.{entry.name} is {value}; it must be at least {least}")
        if self.save_every and self.save_minutes:
            raise UserError("intervals.save_every and save_minutes are both given; set one of them to 0")

    @property
    def final_samples(self) -> int:
        """Validation samples that the last evaluation of a run reads: all of a small set."""
        return 8 * self.evaluate_samples


@dataclass(frozen=True)
class Tasks:
    """Tasks that a run is scored in while it trains: their names, and every how many steps; after the last one too.

    `limit` is how many documents of each task, and `shots` how many examples stand in front; None: all, and as many as
    the task says. `folder` holds tasks of one's own.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    names: tuple[str, ...] = ()
    every_steps: int = 1000
    limit: int | None = None
    shots: int | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("limit", 1), ("shots", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"tasks.{name} is {value}; it must be at least {least}")

    def due(self, step: int, last_step: int) -> bool:
        """Whether a run is scored after this step."""
        return bool(self.names) and (step % self.every_steps == 0 or step == last_step)


@dataclass(frozen=True)
class Recipe:
    """The declaration of a run. `source` says where the numbers come from, `status` what was really run."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    name: str
    model: GPTConfig
    data: Data
    optimizer: AdamW
    schedule: Schedule
    batch: Batch
    cluster: Cluster
    source: str
    status: str
    layout: Layout = field(default_factory=Layout)
    engine: str = "ds_configs/zero1_bf16.json"
    intervals: Intervals = field(default_factory=Intervals)
    tasks: Tasks = field(default_factory=Tasks)
    lora: LoRA = field(default_factory=LoRA)
    teacher: Teacher = field(default_factory=Teacher)
    dpo: DPO = field(default_factory=DPO)
    seed: int = 1234

    def __post_init__(self) -> None:
        self.layout.check(self.model)
        total = sum(part.weight for part in self.data.parts)
        if total and not any(math.isclose(total, whole, rel_tol=1e-5) for whole in (1, self.schedule.train_tokens)):
            raise UserError(
                f"data.corpus: the weights of the blend add up to {total:.10g}; make them add up to 1, or as tokens of "
                f"each part to schedule.train_tokens {self.schedule.train_tokens}"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"the seed is {self.seed}; it must be at least 0 and below 2^63")
        for name, given in (("tasks.names", self.tasks.names), ("teacher.model", self.teacher.model)):
            if given and self.model.objective == "masked":
                raise UserError(f"{name} does not go with model.objective masked: such a model goes on from no text")
        objective = self.model.objective
        if objective == "prefix" and (self.layout.pp > 1 or self.layout.ulysses > 1):
            raise UserError(
                "model.objective prefix does not go with layout.pp or layout.ulysses above 1: its mask is not handed "
                "from rank to rank; use tensor and data parallelism"
            )
        if objective == "prefix" and self.data.separate_documents:
            raise UserError("data.separate_documents does not go with model.objective prefix; switch one of them off")
        if self.dpo.beta and self.data.template != "auto":
            raise UserError(
                f"dpo.beta {self.dpo.beta} needs data.template auto, and rows with prompt, chosen and rejected; set "
                "that, or leave dpo.beta out"
            )
        if self.teacher.model and self.data.tunes:
            raise UserError(
                "teacher.model does not go with data.template: a teacher reads texts; leave one of them out"
            )
        if objective != "causal" and self.data.tunes:
            raise UserError(
                f"data.template does not go with model.objective {objective}: it gives no answers; tune a causal model"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step trains on, after the ramp."""
        return self.batch.global_batch * self.model.seq_length

    @property
    def trained_parameters(self) -> int:
        """Exact number of parameters that train, and that a checkpoint holds: of adapters theirs alone."""
        return self.lora.num_parameters(self.model) if self.lora.rank else self.model.num_parameters

    @property
    def train_samples(self) -> int:
        """Sequences in the token budget."""
        return -(-self.schedule.train_tokens // self.model.seq_length)

    @property
    def train_steps(self) -> int:
        """Optimiser steps for the whole token budget, the ramp's smaller ones among them."""
        return steps_for(self.train_samples, self.batch)

    @property
    def train_flops(self) -> float:
        """Model FLOPs for the whole token budget, without recomputation."""
        return self.model.flops_per_token * self.schedule.train_tokens

    def engine_values(self) -> JsonObject:
        """What the recipe fills into the JSON's "auto"."""
        return {
            "train_batch_size": self.batch.global_batch,
            "train_micro_batch_size_per_gpu": self.batch.micro_batch,
            "optimizer.params.lr": self.optimizer.lr,
            "optimizer.params.betas": list(self.optimizer.betas),
            "optimizer.params.eps": self.optimizer.eps,
            "optimizer.params.weight_decay": self.optimizer.weight_decay,
        }


def steps_for(samples: int, batch: Batch, consumed: int = 0) -> int:
    """Optimiser steps from `consumed` to `samples` sequences."""
    steps = 0
    for number, size in enumerate(batch.ramp):
        end = min(samples, -(-batch.ramp_samples * (number + 1) // len(batch.ramp)))
        taken = max(0, -(-(end - consumed) // size))
        consumed, steps = consumed + taken * size, steps + taken
    return steps + max(0, -(-(samples - consumed) // batch.global_batch))
