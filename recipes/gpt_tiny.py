"""GPT tiny: the whole road on two CPU cores in less than ten minutes, on Shakespeare's plays.

parameters      1.7 M  (2 layers, 192 wide, 3 heads, vocabulary 4,096, sequence 64)
tokens a step   1,024  (16 sequences of 64)
steps           1,600  (1.6 M tokens, 1.1 epochs of the plays)
FLOPs           1.7e13  (10.3 MFLOPs a token)

In fp32: a CPU without AVX-512 computes bf16 in software, and the demo is to give the same figures everywhere. Chosen by
bits a byte for what two such cores do in five minutes. At so few tokens a small vocabulary, long sequences and many
layers lose: what counts is the number of tokens and steps.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_tiny",
    model=GPTConfig(
        num_layers=2,
        hidden_size=192,
        num_attention_heads=3,
        seq_length=64,
        vocab_size=4096,
        init_method_std=0.042,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="shakespeare", tokeniser="bpe:4096"),
    optimizer=AdamW(lr=3e-3),
    schedule=Schedule(train_tokens=1_638_400, warmup_tokens=81_920, decay_tokens=1_638_400, min_lr_ratio=0.0),
    batch=Batch(global_batch=16, micro_batch=8),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=100, evaluate_every=400, evaluate_samples=160, save_every=800),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: trials by bits a byte, see docs/performance.md",
    status="verified: see docs/performance.md",
)
