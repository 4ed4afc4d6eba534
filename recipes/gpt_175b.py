"""GPT 175B: GPT-3.

parameters      174.6 B  (96 layers, 12,288 wide, 96 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   3,145,728  (1,536 sequences of 2,048)
steps           111,355  (300 B tokens, the first 12 B with a smaller batch)
FLOPs           3.2e23  (1,076,443.0 MFLOPs a token)
cluster         1,024 A100-80GB = tensor 8 x pipeline 16 x data 8; 32 days planned
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
    name="gpt_175b",
    model=GPTConfig(
        num_layers=96,
        hidden_size=12288,
        num_attention_heads=96,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=0.006,  # Megatron-LM's script; sqrt(1 / 3h) would be 0.0052
    ),
    data=Data(corpus="c4", tokeniser="gpt2"),
    optimizer=AdamW(lr=6e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(  # GPT-3, Appendix B: warm-up over 375M tokens, cosine to 10% over 260B, then flat to 300B
        train_tokens=300_000_000_000, warmup_tokens=375_000_000, decay_tokens=260_000_000_000
    ),
    batch=Batch(  # Megatron-LM's script: 16 to 1,536 in steps of 16 over the first 12B tokens
        global_batch=1536, micro_batch=1, ramp_start=16, ramp_increment=16, ramp_samples=5_859_375
    ),
    cluster=Cluster(gpu="a100-80gb", nodes=128),
    layout=Layout(tp=8, pp=16, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",
    source="GPT-3, arXiv:2005.14165, Table 2.1 and Appendix B; batch, ramp, layout, init: Megatron-LM's "
    "examples/pretrain_gpt3_175B.sh",
    status="planned: never run at size",
)
