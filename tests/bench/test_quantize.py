"""The benchmark of rounded weights: each form is smaller, and far from fp32 by what its rounding says."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench import quantize
from tests.model.test_huggingface import randomise

pytest.importorskip("torchao")
FAR = {"fp32": 0.0, "bf16": 0.02, "torch's dynamic int8": 0.1, "torchao's weight-only int8": 0.02, "GGUF q8_0": 0.02}


@pytest.mark.filterwarnings("ignore")
def test_each_form_is_smaller_and_near() -> None:
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=2, n_head=2)).eval()
    randomise(hf)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        exact = hf(tokens).logits
        source = quantize.in_linears(hf)
        assert (source(tokens).logits - exact).abs().max() < 1e-5
        sizes, far = {}, {}
        for form in quantize.FORMS:
            model, sizes[form] = quantize.in_form(copy.deepcopy(source), form)
            far[form] = float((model(tokens).logits.float() - exact).abs().max() / exact.abs().max())
    assert all(far[form] <= most for form, most in FAR.items()) and far["GGUF q8_0"] < far["GGUF q4_0"] < 0.3
    assert all(far[form] > 0 for form in quantize.FORMS if form != "fp32")
    assert sizes["GGUF q4_0"] < sizes["GGUF q8_0"] < sizes["torch's dynamic int8"] < sizes["fp32"]
    assert sizes["bf16"] < 0.6 * sizes["fp32"]
