"""GPT 2.7B.

parameters      2.7 B  (32 layers, 2,560 wide, 32 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   1,048,576  (512 sequences of 2,048)
steps           286,103  (300 B tokens)
FLOPs           5.4e21  (17,899.2 MFLOPs a token)
cluster         64 A100-80GB = tensor 1 x pipeline 1 x data 64; 6 days planned
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
    name="gpt_2_7b",
    model=GPTConfig(
        num_layers=32,
        hidden_size=2560,
        num_attention_heads=32,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.011,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=1.6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: Megatron-DeepSpeed takes 3B for this reason.
        warmup_tokens=3_000_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=512, micro_batch=4),
    cluster=Cluster(gpu="a100-80gb", nodes=8),
    engine="ds_configs/zero1_bf16.json",
    source="GPT-3, arXiv:2005.14165, Table 2.1 and Appendix B; batch, heads, init: Megatron-DeepSpeed",
    status="planned: never run at size",
)
