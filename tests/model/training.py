"""What the engine tests share: a small model, its data, the engine's run of it, and plain PyTorch's."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import GPTConfig
from model.engine import config as engine_config
from model.engine.build import build
from model.engine.engine import Engine, MicroBatch, StepResult
from model.engine.resolve import resolve
from model.gpt import GPT
from model.init import init_weights
from model.layout import Layout
from model.loss import token_losses
from recipes.registry import ROOT

CONFIG = GPTConfig(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=32, vocab_size=500)
DEEP = dataclasses.replace(CONFIG, num_layers=4)  # for four stages
ENTRIES = 380  # of the tokeniser: fewer than the model has room for, and of four tensor ranks the last holds none
GLOBAL_BATCH = 16
LEARNING_RATE = 3e-3
CLIP = 0.25  # below the norms that occur, so that clipping is active in every step
SEED = 1
SINGLE = Layout()


@dataclass(frozen=True)
class Reference:
    losses: list[float]
    norms: list[float]


def batches(steps: int) -> Tensor:
    """Random samples [steps, GLOBAL_BATCH, seq_length + 1]."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, ENTRIES, (steps, GLOBAL_BATCH, CONFIG.seq_length + 1), generator=generator)


def model(config: GPTConfig = CONFIG) -> GPT:
    result = GPT(config)
    init_weights({parameter: name for name, parameter in result.named_parameters()}, config, SEED)
    return result


def mean_loss(plain: GPT, samples: Tensor) -> Tensor:
    return token_losses(plain(samples[:, :-1]), samples[:, 1:], ENTRIES).mean()


def engine_json(name: str, data: int, micro: int = 2, **changes: Any) -> dict[str, Any]:
    path = ROOT / "ds_configs" / f"{name}.json"
    values = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": micro,
        "optimizer.params.lr": LEARNING_RATE,
        "optimizer.params.betas": [0.9, 0.95],
        "optimizer.params.eps": 1e-8,
        "optimizer.params.weight_decay": 0.1,
    }
    config = {**engine_config.read(path), "gradient_clipping": CLIP, **changes}
    if "zero_hpz_partition_size" in config["zero_optimization"]:
        config["zero_optimization"]["zero_hpz_partition_size"] = 2  # ranks of a "node"
    if config["zero_optimization"]["stage"] == 3:  # partition the smallest parameter too
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return json.loads(json.dumps(resolve(config, values, data, str(path)).json))


def micro_batches(samples: Tensor, dp_rank: int, dp: int, micro: int = 2) -> list[MicroBatch]:
    """The micro-batches of one data rank, laid out as the training loop does."""
    parts = micro_batches_of(samples, dp_rank, dp, micro)
    weight = 1 / CONFIG.seq_length
    return [MicroBatch(p[:, :-1], p[:, 1:], torch.full(p[:, 1:].shape, weight)) for p in parts]


def micro_batches_of(rows: Tensor, dp_rank: int, dp: int, micro: int = 2) -> list[Tensor]:
    """The rows of each of these micro-batches."""
    return [rows[first : first + micro] for first in range(dp_rank * micro, len(rows), micro * dp)]


def config_for(layout: Layout) -> GPTConfig:
    return DEEP if layout.pp > CONFIG.num_layers else CONFIG


def trainer(name: str, layout: Layout = SINGLE, micro: int = 2, **changes: Any) -> Engine:
    dp = layout.data_degree(torch.distributed.get_world_size())
    return build(config_for(layout), layout, engine_json(name, dp, micro, **changes), SEED, ENTRIES)


def step(subject: Engine, samples: Tensor, micro: int = 2) -> StepResult:
    return subject.train_step(micro_batches(samples, subject.grid.dp_rank, subject.grid.dp, micro))


def run_engine(name: str, steps: int, layout: Layout = SINGLE, micro: int = 2, **changes: Any) -> list[StepResult]:
    """Train on this rank."""
    subject = trainer(name, layout, micro, **changes)
    return [step(subject, samples, micro) for samples in batches(steps)]


def run_plain(steps: int, config: GPTConfig = CONFIG) -> Reference:
    """The same in one process of plain PyTorch, fp32."""
    plain = model(config)
    optimizer = plain_optimizer(plain)
    losses, norms = [], []
    for samples in batches(steps):
        optimizer.zero_grad()
        loss = mean_loss(plain, samples)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), CLIP)))
        optimizer.step()
        losses.append(loss.item())
    return Reference(losses, norms)


def plain_optimizer(plain: GPT) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, written out independently of the engine."""
    matrices = [p for name, p in plain.named_parameters() if name.endswith("weight") and "norm" not in name]
    others = [p for name, p in plain.named_parameters() if name.endswith("bias") or "norm" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8)
