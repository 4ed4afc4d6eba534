"""Packed weights give what plain ones do."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.decode import packed
from inference.decode.packed import Packed, pack

# Sums of products of fp32 in another order: a sum of n terms moves by n ulps of its largest at most.
TOLERANCE = 2**-24


def layer(inputs: int = 96, outputs: int = 160, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, outputs, dtype=dtype)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_products_are_those_of_plain_weights() -> None:
    plain = layer()
    subject = copy.deepcopy(plain)
    pack(subject)
    assert isinstance(subject.weight, Packed) and torch.equal(subject.weight, plain.weight)
    shapes = (torch.randn(96), torch.randn(1, 1, 96), torch.randn(3, 7, 96), torch.randn(96, 5).T, torch.randn(130, 96))
    for x in shapes:
        with torch.inference_mode():
            wanted, most = plain(x), 96 * TOLERANCE * (x.abs() @ plain.weight.abs().T + plain.bias.abs())
            assert subject(x).shape == wanted.shape and ((subject(x) - wanted).abs() <= most).all()
            assert ((F.linear(x, subject.weight) - F.linear(x, plain.weight)).abs() <= most).all()
            assert torch.equal(F.embedding(torch.tensor([3, 0]), subject.weight), plain.weight[[3, 0]])
    assert torch.equal(subject(x), plain(x)) and subject(x.requires_grad_()).requires_grad  # where something is trained
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(subject)(x), plain(x))  # a copy is not packed


def test_other_models_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    half, large, far = layer(dtype=torch.bfloat16), layer(), layer().to("meta")
    monkeypatch.setattr(packed, "MOST_BYTES", 4 * (96 * 160 + 160) - 1)
    for each in (half, large, far):
        pack(each)
        assert type(each.weight) is nn.Parameter


def test_weights_stay_as_they_are_where_torch_cannot_pack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations are private, and builds without oneDNN have none."""

    def other(*_: object) -> Tensor:
        raise TypeError("another version takes other arguments")

    for name, value in (("mkldnn", SimpleNamespace()), ("mkldnn", SimpleNamespace(**dict.fromkeys(packed.OPS, other)))):
        monkeypatch.setattr(torch.ops, name, value, raising=False)
        packed._can_pack.cache_clear()
        subject = layer()
        pack(subject)
        assert type(subject.weight) is nn.Parameter
    monkeypatch.undo()
    packed._can_pack.cache_clear()
