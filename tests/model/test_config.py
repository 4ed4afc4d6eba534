import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT

SHAPES = [
    GPTConfig(num_layers=1, hidden_size=8, num_attention_heads=2, seq_length=4, vocab_size=10),
    GPTConfig(num_layers=3, hidden_size=24, num_attention_heads=3, seq_length=16, vocab_size=257, ffn_hidden_size=40),
    GPTConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=8, vocab_size=50257, vocab_multiple=1024),
]


@pytest.mark.parametrize("config", SHAPES)
def test_closed_form_count_is_the_model_s(config: GPTConfig) -> None:
    assert config.num_parameters == sum(p.numel() for p in GPT(config).parameters())


def test_count_by_hand() -> None:
    # One layer, 2 wide, 1 head, sequence 3, 5 tokens padded to 6. Embedding 6x2, positions 3x2.
    # Attention 2x6+6 and 2x2+2; MLP 2x8+8 and 8x2+2; two norms of 2+2; the final norm 2+2.
    config = GPTConfig(1, 2, 1, 3, 5, vocab_multiple=6)
    assert config.num_parameters == 12 + 6 + (18 + 6) + (24 + 18) + 8 + 4


def test_530b_counts_as_published() -> None:
    # Narayanan et al. 2021, table 1: 529.6 billion for 105 layers, 20480 wide, vocabulary 51,200.
    config = GPTConfig(105, 20480, 128, 2048, 50257, vocab_multiple=1024)
    assert config.padded_vocab_size == 51200
    assert round(config.num_parameters / 1e9, 1) == 529.6


def test_flops_are_narayanan_s_formula_without_recomputation() -> None:
    # arXiv:2104.04473, section 5.1: F = 96 B s l h^2 (1 + s/6h + V/16lh) with the forward pass done twice.
    # Without recomputation the blocks cost 72 in place of 96 and the head, never recomputed, stays at 6 B s h V.
    config = GPTConfig(24, 1024, 16, 1024, 51200)
    layers, h, s, v = 24, 1024, 1024, 51200
    assert config.flops_per_token == pytest.approx(72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 30}, "28, 32"),
        ({"num_layers": 0}, "model.num_layers is 0"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"init_method_std": 0.0}, "init_method_std"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, float], words: str) -> None:
    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 8, "vocab_size": 10}
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**shape, **change})  # type: ignore[arg-type]


def test_every_parameter_is_trained() -> None:
    config = SHAPES[0]
    model = GPT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    model(torch.randint(0, 10, (2, 4))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
