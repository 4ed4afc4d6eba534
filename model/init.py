"""Initial weights as a function of the seed and the parameter's name alone, so that every layout starts the same."""

import hashlib

import torch
from torch import Tensor, nn

from model.config import GPTConfig

RESIDUAL_OUTPUTS = ("attention.out.weight", "mlp.down.weight")


def init_weights(model: nn.Module, config: GPTConfig, seed: int) -> None:
    """Fill every parameter of `model` in place; names are those of the plain `GPT`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, seed))


def initial_value(name: str, shape: torch.Size, config: GPTConfig, seed: int) -> Tensor:
    """The initial value of one parameter, fp32, on the CPU.

    Norm weights are 1, biases 0. Matrices are normal with `init_method_std`, divided by sqrt(2 num_layers) where they
    write into the residual stream (Radford et al. 2019, section 2.3).
    """
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    std = config.init_method_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= (2 * config.num_layers) ** 0.5
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.empty(shape).normal_(0.0, std, generator=generator)
