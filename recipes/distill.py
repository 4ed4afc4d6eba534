"""Distill: a small model learns from SmolLM2-135M-Instruct what comes next in Shakespeare's comedies.

parameters      6.7 M  (2 layers, 128 wide, 2 heads, vocabulary 49,152, sequence 64)
tokens a step   1,024  (16 sequences of 64)
steps           600  (0.6 M tokens)
FLOPs           2.5e13  (40.3 MFLOPs a token)

The teacher comes with a package of PyPI, no account and no hub. Most of the student's parameters are the teacher's
vocabulary. With a teacher of one's own: `--set teacher.model=newest:tiny data.tokeniser=RUN/tokeniser
model.vocab_size=4096`.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule
from recipes.teacher import Teacher

RECIPE = Recipe(
    name="distill",
    model=GPTConfig(
        num_layers=2,
        hidden_size=128,
        num_attention_heads=2,
        seq_length=64,
        vocab_size=49152,
        init_method_std=0.051,  # sqrt(1 / 3h)
    ),
    data=Data(corpus="shakespeare-comedies", tokeniser="smollm2-135m-instruct"),
    teacher=Teacher(model="smollm2-135m-instruct", top_k=64, temperature=2.0, soft_share=0.5),
    optimizer=AdamW(lr=3e-3),
    schedule=Schedule(train_tokens=614_400, warmup_tokens=40_960, decay_tokens=614_400, min_lr_ratio=0.0),
    batch=Batch(global_batch=16, micro_batch=8),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=50, evaluate_every=200, evaluate_samples=160, save_every=300),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the teacher's vocabulary, and gpt_tiny's rate and batch; see docs/distilling.md",
    status="verified: see docs/distilling.md",
)
