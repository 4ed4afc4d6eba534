"""GPT 345M: Megatron-LM's GPT-2 (Shoeybi et al. 2019), on OpenWebText.

parameters      354.9 M  (24 layers, 1,024 wide, 16 heads, vocabulary 50,257 padded to 50,304, sequence 1,024)
tokens a step   524,288  (512 sequences of 1,024)
steps           300,000  (157 B tokens)
FLOPs            3.8e20  (2,423.0 MFLOPs a token)
cluster         8 A100-80GB = tensor 1 x pipeline 1 x data 8; 4 days planned
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Recipe, Schedule

TOKENS_PER_STEP = 512 * 1024

RECIPE = Recipe(
    name="gpt_345m",
    model=GPTConfig(
        num_layers=24, hidden_size=1024, num_attention_heads=16, seq_length=1024, vocab_size=50257, dropout=0.1
    ),
    data=Data(corpus="openwebtext", tokeniser="gpt2"),
    optimizer=AdamW(lr=1.5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),  # betas, eps: Megatron-LM's defaults
    schedule=Schedule(  # 300,000 steps: warm-up over 3,000, cosine over the other 297,000 down to 1e-5
        train_tokens=300_000 * TOKENS_PER_STEP,
        warmup_tokens=3_000 * TOKENS_PER_STEP,
        decay_tokens=300_000 * TOKENS_PER_STEP,
        min_lr_ratio=1e-5 / 1.5e-4,
    ),
    batch=Batch(global_batch=512, micro_batch=16),
    cluster=Cluster(gpu="a100-80gb", nodes=1),
    source="Megatron-LM, arXiv:1909.08053, section 4 and 5.3; minimum rate from its examples/pretrain_gpt.sh",
    status="planned: never run at size",
)
