"""GPT mini: a base for the recipes that tune, which has read the texts of their tasks.

parameters      3.0 M  (3 layers, 192 wide, 3 heads, vocabulary 8,192, sequence 512)
tokens a step   2,048  (4 sequences of 512)
steps           3,000  (6.1 M tokens)
FLOPs           1.3e14  (20.9 MFLOPs a token)

It reads rows for training as plain texts, prompt and answer, in English, Chinese, German and French.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Intervals, Part, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_mini",
    model=GPTConfig(
        num_layers=3,
        hidden_size=192,
        num_attention_heads=3,
        seq_length=512,
        vocab_size=8192,
        init_method_std=0.042,  # sqrt(1 / 3h)
    ),
    data=Data(
        corpus=(
            Part("tune_summary", 0.20),
            Part("tune_instructions", 0.16),
            Part("tune_help_zh", 0.16),
            Part("tune_read", 0.10),
            Part("tune_help_de", 0.09),
            Part("tune_sentiment", 0.08),
            Part("tune_verse", 0.08),
            Part("tune_facts", 0.04),
            Part("tune_packages_fr", 0.03),
            Part("tune_coqa", 0.03),
            Part("tune_sources", 0.02),
            Part("tune_dialogue", 0.01),
        ),
        tokeniser="bpe:8192",
    ),
    optimizer=AdamW(lr=3e-3),
    schedule=Schedule(train_tokens=6_144_000, warmup_tokens=307_200, decay_tokens=6_144_000, min_lr_ratio=0.0),
    batch=Batch(global_batch=4, micro_batch=2),
    engine="ds_configs/zero1_fp32.json",
    intervals=Intervals(log_every=100, evaluate_every=1000, evaluate_samples=40, save_every=500),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the width and rate of gpt_tiny, not tried otherwise; see docs/tasks.md",
    status="verified: see docs/tasks.md",
)
