"""GPT 18B.

parameters      18.4 B  (40 layers, 6,144 wide, 48 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   2,097,152  (1,024 sequences of 2,048)
steps           143,052  (300 B tokens)
FLOPs           3.5e22  (116,643.6 MFLOPs a token)
cluster         256 A100-80GB = tensor 8 x pipeline 1 x data 32; 14 days planned

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
    name="gpt_18b",
    model=GPTConfig(
        num_layers=40,
        hidden_size=6144,
        num_attention_heads=48,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.0074,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=9.3e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: Megatron-DeepSpeed takes 3B for this reason.
        warmup_tokens=3_000_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=1024, micro_batch=8),
    cluster=Cluster(gpu="a100-80gb", nodes=32),
    layout=Layout(tp=8, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",  # ZeRO stage 1 and full recomputation, which is wanted here too
    source="Narayanan et al. 2021, arXiv:2104.04473, Table 1: shape, layout, batch, GPUs; the rest: see above",
    status="planned: never run at size",
)
