"""Weights in the order that a processor multiplies them in, laid out once and not in each product."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_BYTES = 2**31  # of weights that are packed: they are held twice then
SMALL = 2**20  # elements of a matrix: a single row goes through it faster as it is
ROWS = 64  # of a product that they are laid out for; it also serves other numbers well


class Packed(nn.Parameter):
    """A matrix that is what it was, but for linear layers when nothing is trained: these take its packed copy."""

    packed: Tensor | None = None

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear and not kwargs and torch.is_inference_mode_enabled():
                x, weight, bias = (*args, None)[:3]
                if weight.packed is not None and (weight.numel() >= SMALL or x.numel() > x.size(-1)):
                    return torch.ops.mkldnn._linear_pointwise.default(x, weight.packed, bias, "none", [], "")
            return function(*args, **(kwargs or {}))


def pack(model: nn.Module) -> None:
    """Pack all matrices of a model on a CPU in fp32, where it is no larger than `MOST_BYTES`; its texts stay the same
    but for the last bits of scores."""
    parameters = list(model.parameters())
    size = sum(each.numel() * each.element_size() for each in parameters)
    here = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in parameters)
    if not here or size > MOST_BYTES or not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and not isinstance(weight, Packed):
            found = Packed(weight.detach(), requires_grad=False)
            found.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            module.weight = found
