"""Initial weights, a function of the seed and the parameter's name alone. So every layout starts with the same weights.

A rank makes one whole matrix at a time and keeps its slice. So it never holds more than its own part of the model and
one matrix.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from model.config import GPTConfig
from model.engine.inside import shape_of
from model.lora import A, B
from model.parallel import slice_of

RESIDUAL_OUTPUTS = ("attention.out.weight", "mlp.down.weight")
Gather = Callable[[nn.Parameter], AbstractContextManager[object]]


def init_weights(
    names: dict[nn.Parameter, str], config: GPTConfig, seed: int, gather: Gather = lambda _: nullcontext()
) -> None:
    """Fill parameters in place. `names` are those of the plain `GPT`; `gather` makes a partitioned parameter whole."""
    with torch.no_grad():
        for parameter, name in names.items():
            with gather(parameter):
                whole = initial_value(name, whole_shape(parameter), config, seed)
                cut = slice_of(parameter)
                parameter.copy_(cut.of(whole) if cut else whole)


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape that a parameter has in the plain `GPT`."""
    shape, cut = list(shape_of(parameter)), slice_of(parameter)
    if cut:
        shape[cut.dim] *= cut.size
    return torch.Size(shape)


def initial_value(name: str, shape: torch.Size, config: GPTConfig, seed: int) -> Tensor:
    """The initial value of one parameter, whole, fp32, on the CPU.

    Norm weights are 1, biases 0. Matrices are normal with `init_method_std`, divided by sqrt(2 num_layers) where they
    write into the residual stream (Radford et al. 2019, section 2.3).
    """
    if name.endswith(B):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    std = config.init_method_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= (2 * config.num_layers) ** 0.5
    # A seed for each name, and not one stream for all: a rank can then make any parameter without those before it.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    if name.endswith(A):
        return torch.empty(shape).uniform_(-1.0, 1.0, generator=generator) / shape[1] ** 0.5
    return torch.empty(shape).normal_(0.0, std, generator=generator)
