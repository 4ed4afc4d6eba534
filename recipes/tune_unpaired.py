"""Translation without pairs: a small model learns to say English in Chinese, and has read no text in both languages.

parameters      3.0 M  (3 layers, 192 wide, 3 heads, vocabulary 8,192, sequence 512)
tokens a step   2,048  (4 samples of 512 tokens: whole examples and padding)
steps           400  (819,200 tokens)
FLOPs           1.7e13  (20.9 MFLOPs a token)

By back-translation (Sennrich et al. 2016, arXiv:1511.06709): the answers are Chinese as people wrote it, and what is
asked is English that a dictionary made of it, or in further rounds a model that was tuned the other way round. The
base must have read no pairs. gpt_mini, whose shape plans take, has read them: docs/tasks.md trains another.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from recipes.gpt_mini import RECIPE as MINI
from recipes.recipe import BASE, AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="tune_unpaired",
    model=MINI.model,
    data=Data(corpus="tune_help_zh_unpaired", tokeniser=BASE, template="auto", skip_longer=True),
    optimizer=AdamW(lr=1e-3),
    schedule=Schedule(train_tokens=819_200, warmup_tokens=81_920, decay_tokens=819_200, min_lr_ratio=0.0),
    batch=Batch(global_batch=4, micro_batch=2),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=50, evaluate_every=100, evaluate_samples=40, save_every=100),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the budget is what two cores do in minutes, see docs/tasks.md",
    status="verified: see docs/tasks.md",
)
