"""GPT 1T: a trillion parameters.

parameters      1,008.0 B  (128 layers, 25,600 wide, 160 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   6,291,456  (3,072 sequences of 2,048)
steps           47,684  (300 B tokens)
FLOPs           1.8e24  (6,128,192.7 MFLOPs a token)
cluster         3,072 A100-80GB = tensor 8 x pipeline 64 x data 6; 55 days planned

The paper measures speed only; it trains no model to the end. So the rate comes from two runs that others trained:
on a log-log plot of rates over parameters it is on the line through GPT-3's 175B (6e-5) and MT-NLG's 530B (5e-5).
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
    name="gpt_1t",
    model=GPTConfig(
        num_layers=128,
        hidden_size=25600,
        num_attention_heads=160,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.0036,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=4.5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: 954 steps, as many as Megatron-DeepSpeed's 175B takes for this reason.
        warmup_tokens=6_000_000_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=3072, micro_batch=1),
    cluster=Cluster(gpu="a100-80gb", nodes=384),
    layout=Layout(tp=8, pp=64, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",
    source="Narayanan et al. 2021, arXiv:2104.04473, Table 1: shape, layout, batch, GPUs; the rest: see above",
    status="planned: never run at size",
)
