"""Translation without pairs: a GPT tiny learns to say English in Chinese, and has read no text in both languages.

parameters      1.7 M  (2 layers, 192 wide, 3 heads, vocabulary 4,096, sequence 128)
tokens a step   2,048  (16 samples of 128 tokens: whole examples and padding)
steps           200  (409,600 tokens)
FLOPs           4.3e12  (10.6 MFLOPs a token)

By back-translation (Sennrich et al. 2016, arXiv:1511.06709): the answers are Chinese as people wrote it, and what is
asked is English that a dictionary made of it, or in further rounds a model that was tuned the other way round. The
shape is that of the model that it begins with, which may be any: `--from`. See docs/tuning.md.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from dataclasses import replace

from recipes.gpt_tiny import RECIPE as TINY
from recipes.recipe import BASE, AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="tune_unpaired",
    model=replace(TINY.model, seq_length=128),
    data=Data(corpus="tune_help_zh_unpaired", tokeniser=BASE, template="auto", skip_longer=True),
    optimizer=AdamW(lr=2e-3),
    schedule=Schedule(train_tokens=409_600, warmup_tokens=81_920, decay_tokens=409_600, min_lr_ratio=0.0),
    batch=Batch(global_batch=16, micro_batch=8),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=20, evaluate_every=200, evaluate_samples=160, save_every=200),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the budget is what two cores do in minutes, see docs/tuning.md",
    status="verified: see docs/tuning.md",
)
