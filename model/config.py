"""The shape of a GPT and its closed-form arithmetic. Imports no torch: recipes and plans are read in milliseconds."""

import math
from dataclasses import dataclass
from typing import ClassVar

from support.errors import UserError

OBJECTIVES = ("causal", "masked", "prefix")
LAYERS = ("qkv", "out", "up", "down")  # of each block: what adapters can stand beside


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT-2 / MT-NLG decoder: learned positions, pre-layer-norm, GELU, biases, tied embedding.

    `ffn_hidden_size=0` means the usual four times `hidden_size`. The embedding has `padded_vocab_size` rows:
    `vocab_size` rounded up to a multiple of `vocab_multiple`. That belongs to the recipe and not to the layout, so
    another layout changes no shape. `objective` is "causal", "masked" (every token sees every token, and a share of
    them is to be guessed) or "prefix" (the tokens of a prefix see each other, the others see what is before them).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    seq_length: int
    vocab_size: int
    ffn_hidden_size: int = 0
    vocab_multiple: int = 128
    init_method_std: float = 0.02
    dropout: float = 0.0
    objective: str = "causal"

    def __post_init__(self) -> None:
        if self.ffn_hidden_size == 0:
            object.__setattr__(self, "ffn_hidden_size", 4 * self.hidden_size)
        sizes = ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "vocab_size", "vocab_multiple")
        for name in (*sizes, "ffn_hidden_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            below = self.hidden_size - self.hidden_size % self.num_attention_heads
            nearest = [size for size in (below, below + self.num_attention_heads) if size > 0]
            raise UserError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_attention_heads "
                f"{self.num_attention_heads}; the nearest sizes that are: {', '.join(map(str, nearest))}"
            )
        if self.objective not in OBJECTIVES:
            raise UserError(f"model.objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; it must be in [0, 1)")
        if not 0.0 < self.init_method_std < math.inf:
            raise UserError(f"model.init_method_std is {self.init_method_std}; it must be positive and finite")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def block_parameters(self) -> int:
        """Parameters of one transformer block: attention, MLP, two layer norms, biases included."""
        h, f = self.hidden_size, self.ffn_hidden_size
        attention = (3 * h * h + 3 * h) + (h * h + h)
        mlp = (h * f + f) + (f * h + h)
        return attention + mlp + 2 * 2 * h

    @property
    def num_parameters(self) -> int:
        """Exact number of trainable parameters, padding rows included; the tied embedding counts once."""
        embedding = (self.padded_vocab_size + self.seq_length) * self.hidden_size
        return embedding + self.num_layers * self.block_parameters + 2 * self.hidden_size

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs to train on one token, forward and backward, without recomputation.

        Narayanan et al. 2021 (arXiv:2104.04473), section 5.1, with the recomputed forward left out: six FLOPs per
        weight of each matrix product (blocks and head), and 12 s h per layer for the attention scores and their
        product with the values, counted over the full square as the paper does.
        """
        h = self.hidden_size
        matrices = self.num_layers * (4 * h * h + 2 * h * self.ffn_hidden_size) + self.padded_vocab_size * h
        return 6.0 * matrices + 12.0 * self.num_layers * self.seq_length * h


@dataclass(frozen=True)
class LoRA:
    """Adapters that train beside the frozen weights of another run (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    A layer of `targets` adds `alpha` / `rank` times two matrices of that rank to its own. Rank 0: no adapters, and all
    weights train. `dropout` acts on what adapters read.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("qkv", "out")

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 0, which is none")
        if not 0.0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}; it must be positive and finite")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")
        if not self.targets or set(self.targets) - set(LAYERS) or len(set(self.targets)) < len(self.targets):
            raise UserError(
                f"lora.targets is {', '.join(self.targets) or 'empty'}; name some of {', '.join(LAYERS)}, each once"
            )

    def num_parameters(self, model: GPTConfig) -> int:
        """Exact number of the adapters' parameters in such a model."""
        h, f = model.hidden_size, model.ffn_hidden_size
        widths = {"qkv": h + 3 * h, "out": h + h, "up": h + f, "down": f + h}
        return model.num_layers * self.rank * sum(widths[target] for target in self.targets)

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


NO_ADAPTERS = LoRA()
