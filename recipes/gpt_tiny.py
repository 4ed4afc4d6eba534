"""GPT tiny: the whole road on two CPU cores in five minutes, on Shakespeare's plays.

parameters      4.3 M  (4 layers, 256 wide, 4 heads, vocabulary 4,096, sequence 256)
tokens a step   4,096  (16 sequences of 256)
steps             800  (3.3 M tokens, two epochs of the plays)
FLOPs         9.3e13  (28.3 MFLOPs a token), three and a half minutes at 0.45 TFLOP/s on two cores
"""

from model.config import GPTConfig
from recipes.recipe import AdamW, Batch, Cluster, Data, Intervals, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_tiny",
    model=GPTConfig(num_layers=4, hidden_size=256, num_attention_heads=4, seq_length=256, vocab_size=4096),
    data=Data(corpus="shakespeare", tokeniser="bpe:4096"),
    optimizer=AdamW(lr=2e-3),
    schedule=Schedule(train_tokens=3_276_800, warmup_tokens=163_840, decay_tokens=3_276_800),
    batch=Batch(global_batch=16, micro_batch=8),
    intervals=Intervals(log_every=20, evaluate_every=200, evaluate_samples=64, save_every=400),
    cluster=Cluster(gpu="cpu", nodes=1, gpus_per_node=2),
    source="this project: the best validation loss in 200 s on two cores, see docs/performance.md",
    status="verified: see docs/performance.md",
)

if __name__ == "__main__":
    from recipes.pretrain import main

    main(RECIPE)
