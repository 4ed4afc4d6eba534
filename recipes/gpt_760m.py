"""GPT 760M: GPT-3 Large.

parameters      761.7 M  (24 layers, 1,536 wide, 16 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   524,288  (256 sequences of 2,048)
steps           572,205  (300 B tokens)
FLOPs           1.6e21  (5,454.7 MFLOPs a token)
cluster         16 A100-80GB = tensor 1 x pipeline 1 x data 16; 7 days planned
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_760m",
    model=GPTConfig(
        num_layers=24,
        hidden_size=1536,
        num_attention_heads=16,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.015,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=2.5e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: Megatron-DeepSpeed takes 3B for this reason.
        warmup_tokens=3_000_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=256, micro_batch=16),
    cluster=Cluster(gpu="a100-80gb", nodes=2),
    engine="ds_configs/zero1_bf16.json",
    source="GPT-3, arXiv:2005.14165, Table 2.1 and Appendix B; batch, heads, init: Megatron-DeepSpeed",
    status="planned: never run at size",
)
