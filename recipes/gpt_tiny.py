"""GPT tiny: the whole road on two CPU cores in five minutes, on Shakespeare's plays.

parameters      3.5 M  (3 layers, 256 wide, 4 heads, vocabulary 4,096, sequence 128)
tokens a step   2,048  (16 sequences of 128)
steps           1,500  (3.1 M tokens, two epochs of the plays)
FLOPs           6.6e13  (21.6 MFLOPs a token)

Of the shapes, rates and batches that were tried this one had the best validation loss after 200 seconds on two cores.
Short sequences, small batches and few layers win at so few tokens: what counts is the number of steps.
"""

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_tiny",
    model=GPTConfig(num_layers=3, hidden_size=256, num_attention_heads=4, seq_length=128, vocab_size=4096),
    data=Data(corpus="shakespeare", tokeniser="bpe:4096"),
    optimizer=AdamW(lr=2e-3),
    schedule=Schedule(train_tokens=3_072_000, warmup_tokens=153_600, decay_tokens=3_072_000),
    batch=Batch(global_batch=16, micro_batch=8),
    intervals=Intervals(log_every=50, evaluate_every=250, evaluate_samples=128, save_every=500),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the best validation loss in 200 s on two cores, see docs/performance.md",
    status="verified: see docs/performance.md",
)

if __name__ == "__main__":
    from commands.pretrain import main

    main(RECIPE)
