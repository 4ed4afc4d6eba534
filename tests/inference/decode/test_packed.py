"""Packed weights give what plain ones do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inference.decode import packed
from inference.decode.packed import Packed, pack

# Sums of products of fp32 in another order: a sum of n terms moves by n ulps of its largest at most.
TOLERANCE = 2**-24


def layer(inputs: int = 96, outputs: int = 160, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, outputs, dtype=dtype)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_products_are_those_of_plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = layer()
    subject = copy.deepcopy(plain)
    pack(subject)
    assert isinstance(subject.weight, Packed) and torch.equal(subject.weight, plain.weight)
    for small in (packed.SMALL, 0):  # a single row goes through the plain weights, or the packed ones
        monkeypatch.setattr(packed, "SMALL", small)
        for x in (torch.randn(1, 1, 96), torch.randn(3, 7, 96), torch.randn(96, 5).T, torch.randn(130, 96)):
            with torch.inference_mode():
                wanted, most = plain(x), 96 * TOLERANCE * (x.abs() @ plain.weight.abs().T + plain.bias.abs())
                assert ((subject(x) - wanted).abs() <= most).all()
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
