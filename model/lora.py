"""LoRA: small matrices beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685, section 4.1).

A layer's output gains alpha / rank times B A x. Axes: A is [R, in], B is [out, R]; R is the rank of the matrices, which
no layout cuts. Tensor slicing cuts B of a column layer as its outputs, and A of a row layer as its inputs. So a rank's
own slices merge: W + alpha / rank times B A is this rank's slice of the whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPTConfig, LoRA
from model.gpt import GPT
from model.layers import ColumnParallelLinear, RowParallelLinear
from model.parallel import enter, leave, mark_slice, replicated, sliced_random

ADAPTER = "adapter"
A, B = f".{ADAPTER}.a", f".{ADAPTER}.b"  # end the names of the matrices, after that of their layer


class Adapter(nn.Module):
    """What a layer's output gains. Its values come from `model/init.py`."""

    def __init__(self, layer: ColumnParallelLinear | RowParallelLinear, lora: LoRA) -> None:
        super().__init__()
        self.parallel, self.row = layer.parallel, isinstance(layer, RowParallelLinear)
        self.scale, self.dropout = lora.scale, lora.dropout
        device, dtype = layer.weight.device, layer.weight.dtype
        self.a = nn.Parameter(torch.empty(lora.rank, layer.in_features, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.empty(layer.out_features, lora.rank, device=device, dtype=dtype))
        if self.row:
            mark_slice(self.a, 1, self.parallel.tp)
        else:
            mark_slice(self.b, 0, self.parallel.tp)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is what the layer gets. What crosses tensor ranks is as narrow as the rank of the matrices."""
        parallel = self.parallel
        with sliced_random(parallel, self.training and self.dropout > 0 and (self.row or parallel.sequence_parallel)):
            x = F.dropout(x, self.dropout, self.training)
        if self.row:
            x_BSR = leave(F.linear(x, self.a), parallel)
            return F.linear(self.scale * x_BSR, replicated(self.b, parallel))
        x_BSR = enter(F.linear(x, replicated(self.a, parallel)), parallel)
        return F.linear(self.scale * x_BSR, self.b)


def adapt(model: nn.Module, lora: LoRA) -> None:
    """Freeze a model, and give the layers that `lora` names adapters, which train."""
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, ColumnParallelLinear | RowParallelLinear) and name.rpartition(".")[2] in lora.targets:
            layer.adapter = Adapter(layer, lora)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return name.endswith((A, B))


def of_layer(name: str) -> tuple[str, str]:
    """The names of the matrices beside the layer whose weight has this name."""
    stem = name.removesuffix(".weight")
    return stem + A, stem + B


def shapes(config: GPTConfig, lora: LoRA) -> dict[str, torch.Size]:
    """The shape of each adapter's matrices, by name. Takes no memory."""
    with torch.device("meta"):
        model = GPT(config)
        adapt(model, lora)
    return {name: parameter.shape for name, parameter in model.named_parameters() if is_adapter(name)}


def merged(weights: dict[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """Weights with adapters among them, or a rank's slices of both, as those of a model without adapters."""
    result = {}
    for name, value in weights.items():
        if not is_adapter(name):
            a, b = of_layer(name)
            result[name] = torch.addmm(value, weights[b], weights[a], alpha=lora.scale) if a in weights else value
    return result
