"""Loss, perplexity and bits per byte of a run on any text: `python -m recipes.evaluate --data my.txt`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.sources import SPLITS
from recipes import cli
from recipes.export import load_model, load_tokeniser
from recipes.report import bits_per_byte, perplexity
from recipes.run import newest, read_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from model.gpt import GPT

BATCH_TOKENS = 16_384  # tokens evaluated at once: large enough to keep a GPU busy, small enough for a laptop


def evaluate(run: Path, data: str) -> dict[str, Any]:
    """Loss of a run on `data`: "validation" (the run's own), a prepared split or shard by its path, or any corpus.

    Long texts are cut into consecutive windows of the model's length, so that every token but the first is predicted
    once. Errors: `ValueError` where the data cannot be read or is a single token.
    """
    import torch

    from model.engine_config import precision, read

    recipe = read_recipe(run)
    config = recipe.model
    if config.objective != "causal":
        raise ValueError(
            f"{run} was trained with the {config.objective} objective: it has no loss on plain text; its "
            "validation loss stands in report.json"
        )
    tokeniser = load_tokeniser(run)
    texts = _texts(run, data, tokeniser)
    for text in texts:
        if len(text.tokens) < 2:
            raise ValueError(f"{text.name} holds {len(text.tokens)} tokens; a loss needs at least 2")
        if int(text.tokens.max()) >= config.vocab_size:
            raise ValueError(
                f"{text.name} holds token {text.tokens.max()} but the model has {config.vocab_size}: another tokeniser "
                "made it"
            )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(run).to(device, dtype[precision(read(run / "ds_config.json"))])
    end = tokeniser.eos_token_id if recipe.data.separate_documents else None
    losses = [_loss(model, text.tokens, end) for text in texts]
    total = sum(text.share for text in texts)
    loss = sum(text.share * each for text, each in zip(texts, losses, strict=True)) / total
    bytes_per_token = sum(text.share * text.size / len(text.tokens) for text in texts) / total
    return {
        "run": str(run),
        "data": data,
        "tokens": sum(len(text.tokens) - 1 for text in texts),
        "bytes": sum(text.size for text in texts),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, bytes_per_token),
        "parts": [
            {"name": text.name, "share": text.share / total, "loss": each, "tokens": len(text.tokens) - 1}
            for text, each in zip(texts, losses, strict=True)
        ],
    }


def _loss(model: "GPT", tokens: "NDArray[np.generic]", end: int | None) -> float:
    """Mean loss in nats over every token but the first; documents that `end` closes do not see each other."""
    import torch

    from data.objectives import documents
    from data.sampling import windows
    from model.loss import token_losses

    config, device = model.config, next(model.parameters()).device
    samples, mask = (torch.from_numpy(array) for array in windows(tokens, config.seq_length))
    total = torch.zeros(2, dtype=torch.float64, device=device)
    batch = max(1, BATCH_TOKENS // config.seq_length)
    for first in range(0, len(samples), batch):
        rows = slice(first, first + batch)
        shown = samples[rows, :-1]
        apart = None if end is None else torch.from_numpy(documents(shown.numpy(), end)).to(device)
        with torch.no_grad():
            logits = model(shown.to(device), None, apart)
            losses = token_losses(logits, samples[rows, 1:].to(device), config.vocab_size)
        counted = mask[rows].to(device)
        total += torch.stack(((losses.double() * counted).sum(), counted.sum()))
    return float(total[0] / total[1])


@dataclass(frozen=True)
class Text:
    """What a loss is measured on: tokens, size in bytes, share of the whole beside other texts."""

    name: str
    tokens: "NDArray[np.generic]"
    size: int
    share: int = 1


def _texts(run: Path, data: str, tokeniser: "PreTrainedTokenizerFast") -> list[Text]:
    """What is to be evaluated: of a run's own validation set each part of the blend, else one text."""
    from data import mixture, prepare

    if data != "validation":
        return [Text(data, *_tokens(data, tokeniser))]
    opened = mixture.reopened(json.loads((run / "data.json").read_text()))
    return [
        Text(part.corpus, prepare.shards(part.folder, "validation").read(), manifest["validation"]["bytes"], part.share)
        for part, manifest in zip(opened.parts, opened.manifests, strict=True)
    ]


def _tokens(data: str, tokeniser: "PreTrainedTokenizerFast") -> "tuple[NDArray[np.generic], int]":
    """Tokens and size in bytes of a split of a prepared folder, of a shard, or of any corpus that can be read."""
    import numpy as np

    from data import corpora, prepare
    from data.shards import Shard

    folder, split = Path(data).parent, Path(data).name
    if split in SPLITS and (folder / "manifest.json").exists():
        facts = prepare.check(folder)[split]
        if not facts["tokens"]:
            raise ValueError(f"{folder} holds no {split} documents; give another split")
        return prepare.shards(folder, split).read(), facts["bytes"]
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
        "--data", default="validation", help="validation, a corpus, a prepared folder's FOLDER/test, or a shard"
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
            for part in values["parts"] if len(values["parts"]) > 1 else ():
                print(f"  {part['share']:7.3%} {part['name']}: loss {part['loss']:.4f} over {part['tokens']:,} tokens")

    cli.run_job(job)


if __name__ == "__main__":
    main()
