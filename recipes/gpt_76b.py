"""GPT 76B.

parameters      76.1 B  (60 layers, 10,240 wide, 80 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   3,670,016  (1,792 sequences of 2,048)
steps           81,744  (300 B tokens)
FLOPs           1.4e23  (471,230.1 MFLOPs a token)
cluster         1,024 A100-80GB = tensor 8 x pipeline 4 x data 32; 14 days planned

The paper measures speed only; it trains no model to the end. So the rate comes from two runs that others trained:
on a log-log plot of rates over parameters it is on the line from GPT-3's 13B (1e-4) to its 175B (6e-5).
Token budget, decay, betas and weight decay are GPT-3's.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from model.layout import Layout
from recipes.recipe import AdamW, Batch, Cluster, Data, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_76b",
    model=GPTConfig(
        num_layers=60,
        hidden_size=10240,
        num_attention_heads=80,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.0057,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=7.1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: 954 steps, as many as Megatron-DeepSpeed's 175B takes for this reason.
        warmup_tokens=3_500_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=1792, micro_batch=2),
    cluster=Cluster(gpu="a100-80gb", nodes=128),
    layout=Layout(tp=8, pp=4, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",
    source="Narayanan et al. 2021, arXiv:2104.04473, Table 1: shape, layout, batch, GPUs; the rest: see above",
    status="planned: never run at size",
)
