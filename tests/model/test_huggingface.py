import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model.config import GPTConfig
from model.gpt import GPT
from model.huggingface import from_hf, to_hf

LOGIT_TOLERANCE = 1e-5
CONFIG = GPTConfig(num_layers=3, hidden_size=48, num_attention_heads=4, seq_length=32, vocab_size=301)


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=generator)


@pytest.mark.parametrize("ffn", [0, 80])
def test_our_model_and_its_export_have_the_same_logits(ffn: int) -> None:
    model = GPT(GPTConfig(3, 48, 4, 32, 301, ffn_hidden_size=ffn)).eval()
    randomise(model)
    tokens = torch.randint(0, 301, (2, 32))
    with torch.no_grad():
        ours, theirs = model(tokens)[..., :301], to_hf(model, 301, 0, 0)(tokens).logits
    assert theirs.shape[-1] == 301  # padding is not exported, so it can never be sampled
    assert (ours - theirs).abs().max() <= LOGIT_TOLERANCE


def test_a_gpt2_and_its_import_have_the_same_logits() -> None:
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=301, n_positions=32, n_embd=48, n_layer=3, n_head=4)).eval()
    randomise(hf)
    tokens = torch.randint(0, 301, (2, 32))
    with torch.no_grad():
        ours, theirs = from_hf(hf)(tokens), hf(tokens).logits
    assert ours.shape[-1] == 384
    assert (ours[..., :301] - theirs).abs().max() <= LOGIT_TOLERANCE


@pytest.mark.parametrize("entries", [301, 250])
def test_there_and_back_is_the_same_model_with_the_tokeniser_s_entries(entries: int) -> None:
    model = GPT(CONFIG)
    randomise(model)
    hf = to_hf(model, entries, 7, 8)
    assert (hf.config.vocab_size, hf.config.eos_token_id, hf.config.pad_token_id) == (entries, 7, 8)
    assert hf.lm_head.weight.shape == hf.transformer.wte.weight.shape == (entries, 48)
    back = from_hf(hf)
    for name, parameter in model.named_parameters():
        other = back.get_parameter(name)
        if name == "embed.weight":  # what is no entry comes back as zeros, or not at all
            assert not other[entries:].any()
            parameter, other = parameter[:entries], other[:entries]
        assert torch.equal(parameter, other), name


@pytest.mark.parametrize(
    "variant",
    [{"activation_function": "relu"}, {"layer_norm_epsilon": 1e-6}, {"scale_attn_by_inverse_layer_idx": True}],
)
def test_a_variant_that_this_model_is_not_is_refused(variant: dict[str, object]) -> None:
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=2, **variant))
    with pytest.raises(ValueError, match=next(iter(variant))):
        from_hf(hf)
