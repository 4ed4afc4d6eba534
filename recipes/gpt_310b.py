"""GPT 310B.

parameters      310.1 B  (96 layers, 16,384 wide, 128 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   4,423,680  (2,160 sequences of 2,048)
steps           67,817  (300 B tokens)
FLOPs           5.7e23  (1,899,113.7 MFLOPs a token)
cluster         1,920 A100-80GB = tensor 8 x pipeline 16 x data 15; 28 days planned

The paper measures speed only; it trains no model to the end. So the rate comes from two runs that others trained:
on a log-log plot of rates over parameters it is on the line from GPT-3's 175B (6e-5) to MT-NLG's 530B (5e-5).
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
    name="gpt_310b",
    model=GPTConfig(
        num_layers=96,
        hidden_size=16384,
        num_attention_heads=128,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.0045,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=5.5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(
        train_tokens=300_000_000_000,
        # GPT-3 takes 375M tokens while its batch grows. Here the batch is full from the first step, and that needs a
        # longer warm-up: 954 steps, as many as Megatron-DeepSpeed's 175B takes for this reason.
        warmup_tokens=4_218_750_000,
        decay_tokens=260_000_000_000,  # GPT-3, Appendix B: cosine to 10% of the rate, then flat
    ),
    batch=Batch(global_batch=2160, micro_batch=1),
    cluster=Cluster(gpu="a100-80gb", nodes=240),
    layout=Layout(tp=8, pp=16, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",
    source="Narayanan et al. 2021, arXiv:2104.04473, Table 1: shape, layout, batch, GPUs; the rest: see above",
    status="planned: never run at size",
)
