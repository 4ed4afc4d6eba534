"""Preferences: a GPT tiny learns which of two answers to a film review is the better one (DPO).

parameters      1.7 M  (2 layers, 192 wide, 3 heads, vocabulary 4,096, sequence 64)
tokens a step   1,024  (16 samples of 64 tokens: whole pairs and padding)
steps           400  (409,600 tokens)
FLOPs           4.2e12  (10.3 MFLOPs a token)

The shape is that of the model that it begins with, which may be any: `--from`. That model is the reference too.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from recipes.gpt_tiny import RECIPE as TINY
from recipes.preference import DPO
from recipes.recipe import BASE, AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="tune_preference",
    model=TINY.model,
    data=Data(corpus="tune_preference", tokeniser=BASE, template="auto", skip_longer=True),
    dpo=DPO(beta=0.1),
    optimizer=AdamW(lr=2e-4),
    schedule=Schedule(train_tokens=409_600, warmup_tokens=40_960, decay_tokens=409_600, min_lr_ratio=0.0),
    batch=Batch(global_batch=16, micro_batch=8),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=50, evaluate_every=100, evaluate_samples=160, save_every=300),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="beta: Rafailov et al. 2023, appendix B; the rest this project: see docs/tuning.md",
    status="verified: see docs/tuning.md",
)
