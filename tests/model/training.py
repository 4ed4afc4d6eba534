"""What the engine tests share: a small model, its data, the engine's run of it, and plain PyTorch's."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model import engine_config
from model.config import GPTConfig
from model.engine import StepResult, build_engine, train_step
from model.gpt import GPT
from model.init import init_weights
from model.loss import mean_loss
from recipes.recipe import ROOT

CONFIG = GPTConfig(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=32, vocab_size=500)
GLOBAL_BATCH = 8
LEARNING_RATE = 3e-3
CLIP = 0.25  # below the norms that occur, so that clipping is active in every step


@dataclass(frozen=True)
class Reference:
    losses: list[float]
    norms: list[float]


def batches(steps: int) -> Tensor:
    """Random samples [steps, GLOBAL_BATCH, seq_length + 1]."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, CONFIG.vocab_size, (steps, GLOBAL_BATCH, CONFIG.seq_length + 1), generator=generator)


def model() -> GPT:
    result = GPT(CONFIG)
    init_weights(result, CONFIG, seed=1)
    return result


def engine_json(name: str, world: int, micro: int = 2, **changes: Any) -> dict[str, Any]:
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
    return json.loads(json.dumps(engine_config.resolve(config, values, world, str(path)).json))


def shares(batch: Tensor, rank: int, world: int, micro: int = 2) -> list[Tensor]:
    """The micro-batches of one rank, laid out as the training loop does."""
    return [batch[first : first + micro] for first in range(rank * micro, GLOBAL_BATCH, micro * world)]


def run_engine(name: str, steps: int, micro: int = 2, **changes: Any) -> list[StepResult]:
    """Train on this rank; the losses are this rank's own."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    engine = build_engine(model(), engine_json(name, world, micro, **changes))
    return [train_step(engine, shares(batch, rank, world, micro)) for batch in batches(steps)]


def run_plain(steps: int) -> Reference:
    """The same in one process of plain PyTorch, fp32."""
    plain = model()
    optimizer = plain_optimizer(plain)
    losses, norms = [], []
    for batch in batches(steps):
        optimizer.zero_grad()
        loss = mean_loss(plain(batch[:, :-1]), batch[:, 1:], CONFIG.vocab_size)
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
