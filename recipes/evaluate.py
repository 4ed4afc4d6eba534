"""Loss, perplexity and bits per byte of a run on any text: `python -m recipes.evaluate --data my.txt`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import cli
from recipes.export import load_model, load_tokeniser
from recipes.report import bits_per_byte, perplexity
from recipes.run import newest, read_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

BATCH_TOKENS = 16_384  # tokens evaluated at once: large enough to keep a GPU busy, small enough for a laptop


def evaluate(run: Path, data: str) -> dict[str, Any]:
    """Loss of a run on `data`: "validation" (the run's own), a shard's path, or any corpus that can be read.

    Long texts are cut into consecutive windows of the model's length, so that every token but the first is predicted
    once. Errors: `ValueError` where the data cannot be read or is a single token.
    """
    import torch

    from data.sampling import windows
    from model.engine_config import precision, read
    from model.loss import token_losses

    config = read_recipe(run).model
    if config.objective != "causal":
        raise ValueError(
            f"{run} was trained with the {config.objective} objective: it has no loss on plain text; its "
            "validation loss stands in report.json"
        )
    tokens, size = _tokens(run, data, load_tokeniser(run))
    if len(tokens) < 2:
        raise ValueError(f"{data} holds {len(tokens)} tokens; a loss needs at least 2")
    if int(tokens.max()) >= config.vocab_size:
        raise ValueError(
            f"{data} holds token {tokens.max()} but the model has {config.vocab_size}: another tokeniser made it"
        )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(run).to(device, dtype[precision(read(run / "ds_config.json"))])
    samples, mask = (torch.from_numpy(array) for array in windows(tokens, config.seq_length))
    total = torch.zeros(2, dtype=torch.float64, device=device)
    batch = max(1, BATCH_TOKENS // config.seq_length)
    for first in range(0, len(samples), batch):
        part = slice(first, first + batch)
        with torch.no_grad():
            losses = token_losses(model(samples[part, :-1].to(device)), samples[part, 1:].to(device), config.vocab_size)
        counted = mask[part].to(device)
        total += torch.stack(((losses.double() * counted).sum(), counted.sum()))
    loss = float(total[0] / total[1])
    return {
        "run": str(run),
        "data": data,
        "tokens": int(total[1]),
        "bytes": size,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, len(tokens), size),
    }


def _tokens(run: Path, data: str, tokeniser: "PreTrainedTokenizerFast") -> "tuple[NDArray[np.generic], int]":
    """Tokens and size in bytes of what is to be evaluated."""
    import numpy as np

    from data import corpora, prepare
    from data.shards import Shard

    if data == "validation":
        described = json.loads((run / "data.json").read_text())
        prepare.check(Path(described["folder"]), expected=described)
        return Shard(Path(described["folder"]) / "validation").tokens, described["validation"]["bytes"]
    if Path(data).is_dir():
        data = str(Path(data).resolve())
    prefix = Path(data).with_suffix("") if data.endswith((".bin", ".idx")) else Path(data)
    if prefix.with_name(prefix.name + ".idx").exists():
        tokens = Shard(prefix).tokens
        return tokens, len(tokeniser.decode(tokens.tolist(), skip_special_tokens=True).encode())
    texts = [document.text for document in corpora.documents(data)]
    if not texts:
        raise ValueError(f"{data} holds no text; give another file")
    encoded = tokeniser(texts, add_special_tokens=False)["input_ids"]
    end = [tokeniser.eos_token_id]
    return np.concatenate([np.array([*ids, *end]) for ids in encoded]), sum(len(text.encode()) for text in texts)


def main() -> None:
    parser = cli.Parser("Loss, perplexity and bits per byte of a run's newest checkpoint on any text or shard.")
    parser.add_argument("--run", type=Path, help="run directory; by default the newest")
    parser.add_argument(
        "--data", default="validation", help="validation, a text, JSON lines or Parquet file, or a shard"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> None:
        values = evaluate(args.run or newest(), args.data)
        if args.json:
            print(json.dumps(values))
        else:
            print(
                f"{values['data']}: loss {values['loss']:.4f}, perplexity {values['perplexity']:.2f}, "
                f"{values['bits_per_byte']:.4f} bits a byte over {values['tokens']:,} tokens"
            )

    cli.run_job(job)


if __name__ == "__main__":
    main()
