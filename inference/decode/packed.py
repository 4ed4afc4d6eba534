"""Weights in the order that a processor multiplies them in, laid out once and not in each product."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_BYTES = 2**31  # of weights that are packed: they are held twice then
ROWS = 64  # of a product that they are laid out for; it also serves other numbers well
OPS = ("_reorder_linear_weight", "_linear_pointwise")  # torch's own; a build without oneDNN lacks them


class Packed(nn.Parameter):
    """A matrix that is what it was, but for linear layers when nothing is trained: these take its packed copy.

    A row's product does not depend on the rows beside it, to the last bit: so a text does not depend on its batch. A
    single row is a special case of oneDNN, with sums in another order. It goes through twice.
    """

    packed: Tensor | None = None

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.linear and not kwargs and torch.is_inference_mode_enabled():
            x, weight, bias = (*args, None)[:3]
            if weight.packed is not None and x.dim() > 1:
                multiply = _multiply()
                if x.numel() > x.size(-1):
                    return multiply(x, weight.packed, bias, "none", [], "")
                return multiply(x.expand(2, *x.shape[1:]), weight.packed, bias, "none", [], "")[:1]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@cache
def _multiply() -> Callable[..., Tensor]:
    """The product with packed weights; looked up once, as it is needed for each token and layer."""
    return torch.ops.mkldnn._linear_pointwise.default  # type: ignore[no-any-return]


def pack(model: nn.Module) -> None:
    """Pack all matrices of a model on a CPU in fp32, where it is no larger than `MOST_BYTES` and torch can do it; its
    texts stay the same but for the last bits of scores."""
    parameters = list(model.parameters())
    size = sum(each.numel() * each.element_size() for each in parameters)
    here = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in parameters)
    if not here or size > MOST_BYTES or not _can_pack():
        return
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and not isinstance(weight, Packed):
            found = Packed(weight.detach(), requires_grad=False)
            found.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            module.weight = found


@cache
def _can_pack() -> bool:
    """Whether this torch packs, and multiplies as it should. The operations are private: another version may lack them,
    or take other arguments, and then weights stay as they are."""
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in OPS)):
        return False
    weight, x = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        found = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(found, x @ weight.T)
