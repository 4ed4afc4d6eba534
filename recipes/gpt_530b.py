"""GPT 530B: Megatron-Turing NLG.

parameters      529.6 B  (105 layers, 20,480 wide, 128 heads, vocabulary 50,257 padded to 51,200, sequence 2,048)
tokens a step   3,932,160  (1,920 sequences of 2,048)
steps           80,087  (270 B tokens, the first 12 B with a smaller batch)
FLOPs           8.7e23  (3,230,033.5 MFLOPs a token)
cluster         2,240 A100-80GB = tensor 8 x pipeline 35 x data 8; 37 days planned
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)

from model.config import GPTConfig
from model.layout import Layout
from recipes.recipe import AdamW, Batch, Cluster, Data, Part, Recipe, Schedule

RECIPE = Recipe(
    name="gpt_530b",
    model=GPTConfig(
        num_layers=105,
        hidden_size=20480,
        num_attention_heads=128,
        seq_length=2048,
        vocab_size=50257,
        vocab_multiple=1024,
        init_method_std=4e-3,  # section 3.2: sqrt(1 / 3h)
    ),
    data=Data(  # table 2's fifteen parts; the weights are those of Megatron-DeepSpeed's blend scripts
        corpus=(
            Part("books3", 0.14336),
            Part("openwebtext2", 0.19336),
            Part("stackexchange", 0.05689),
            Part("pubmed-abstracts", 0.02897),
            Part("wikipedia", 0.04771),
            Part("pg19", 0.00873),
            Part("bookcorpus2", 0.01007),
            Part("nih-exporter", 0.00208),
            Part("pile-cc", 0.09446),
            Part("arxiv", 0.01359),
            Part("github", 0.01588),
            Part("cc-2020-50", 0.13017),
            Part("cc-2021-04", 0.15652),
            Part("realnews", 0.08962),
            Part("cc-stories", 0.00859),
        ),
        tokeniser="gpt2",
    ),
    optimizer=AdamW(lr=5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    schedule=Schedule(  # section 3.2: warm-up over 1B tokens, cosine to 10% over 340B; the run ends at 270B
        train_tokens=270_000_000_000, warmup_tokens=1_000_000_000, decay_tokens=340_000_000_000
    ),
    batch=Batch(  # section 3.2: 32 to 1,920 in steps of 32 over the first 12B tokens
        global_batch=1920, micro_batch=1, ramp_start=32, ramp_increment=32, ramp_samples=5_859_375
    ),
    cluster=Cluster(gpu="a100-80gb", nodes=280),
    layout=Layout(tp=8, pp=35, sequence_parallel=True),
    engine="ds_configs/pipeline_bf16.json",
    source="Smith et al. 2022, arXiv:2201.11990, section 3.2",
    status="planned: never run at size",
)
