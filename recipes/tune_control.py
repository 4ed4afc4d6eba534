"""Control: a small model learns to write reviews of films behind a named prefix, `[sentiment=positive] Review:`.

parameters      3.0 M  (3 layers, 192 wide, 3 heads, vocabulary 8,192, sequence 512)
tokens a step   2,048  (4 samples of 512 tokens: whole examples and padding)
steps           600  (1,228,800 tokens)
FLOPs           2.6e13  (20.9 MFLOPs a token)

The shape is that of the model that it begins with, which may be any: `--from`.
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
    name="tune_control",
    model=MINI.model,
    data=Data(corpus="tune_control", tokeniser=BASE, template="auto", skip_longer=True),
    optimizer=AdamW(lr=1e-3),
    schedule=Schedule(train_tokens=1_228_800, warmup_tokens=81_920, decay_tokens=1_228_800, min_lr_ratio=0.0),
    batch=Batch(global_batch=4, micro_batch=2),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=50, evaluate_every=100, evaluate_samples=40, save_every=100),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the rate and batch of tune_sentiment, see docs/tasks.md",
    status="verified: see docs/tasks.md",
)
