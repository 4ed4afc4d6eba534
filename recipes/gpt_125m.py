"""GPT 125M: GPT-3's smallest (Brown et al. 2020, Table 2.1), on OpenWebText.

parameters      125.3 M  (12 layers, 768 wide, 12 heads, vocabulary 50,257 padded to 50,304, sequence 2,048)
tokens a step   524,288  (256 sequences of 2,048)
steps           572,205  (300 B tokens)
FLOPs            2.9e20  (967.9 MFLOPs a token)
cluster         8 A100-80GB = tensor 1 x pipeline 1 x data 8; 3 days planned
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
    name="gpt_125m",
    model=GPTConfig(num_layers=12, hidden_size=768, num_attention_heads=12, seq_length=2048, vocab_size=50257),
    data=Data(corpus="openwebtext", tokeniser="gpt2"),
    optimizer=AdamW(lr=6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),  # Table 2.1; Appendix B
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: Megatron-DeepSpeed takes 3B for this reason.
        warmup_tokens=3_000_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=256, micro_batch=16),  # half a million tokens: 244 sequences in the paper, 256 here
    cluster=Cluster(gpu="a100-80gb", nodes=1),
    source="GPT-3, arXiv:2005.14165, Table 2.1 and Appendix B; vocabulary padding as Megatron-LM",
    status="planned: never run at size",
)
