"""Export a run as a Hugging Face folder: `python -m recipes.export --run runs/gpt_tiny/…`."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recipes import cli
from recipes.run import newest, read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from model.gpt import GPT


EXPORTED_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def load_model(run: Path) -> "GPT":
    """The model of a run's newest undamaged checkpoint, fp32, on the CPU.

    Errors: `ValueError` where the run has no such checkpoint.
    """
    from model import checkpoint
    from model.gpt import GPT

    model = GPT(read_recipe(run).model)
    found = checkpoint.completed(run / "checkpoints")
    for path in reversed(found):
        if not checkpoint.damage(path):
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            model.load_state_dict(checkpoint.Reader(path).weights(shapes))
            return model.eval()
    reason = checkpoint.damage(found[-1]) if found else "no checkpoint was saved yet"
    raise ValueError(f"{run} has no checkpoint to read: {reason}; train it with --resume --run-dir {run}")


def load_tokeniser(run: Path) -> "PreTrainedTokenizerFast":
    """The tokeniser that a run was trained with. Errors: `ValueError` where it is missing."""
    from data import tokenisers

    return tokenisers.load(str(run / "tokeniser"))


def export(run: Path, folder: Path) -> None:
    """Write model and tokeniser so that `AutoModelForCausalLM` and `AutoTokenizer` load them from `folder`.

    The folder appears whole or not at all. Errors: `ValueError` where it holds something else already.
    """
    from transformers.utils import logging

    from model.huggingface import to_hf

    if folder.exists() and not (folder.is_dir() and {file.name for file in folder.iterdir()} <= EXPORTED_FILES):
        raise ValueError(f"{folder} exists and is not an export; give another --out")
    logging.disable_progress_bar()
    model, tokeniser = load_model(run), load_tokeniser(run)
    tokeniser.model_max_length = model.config.seq_length
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        to_hf(model, tokeniser.eos_token_id).save_pretrained(str(scratch))
        tokeniser.save_pretrained(str(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    parser = cli.Parser("Export a run as a Hugging Face folder (GPT2LMHeadModel, fp32, with its tokeniser).")
    parser.add_argument("--run", type=Path, help="run directory; by default the newest")
    parser.add_argument("--out", type=Path, help="folder to write; by default export/ in the run directory")
    parser.add_argument("--json", action="store_true", help="print where it lies as JSON")
    args = parser.parse_args()

    def job() -> None:
        run = args.run or newest()
        read_recipe(run)
        folder = args.out or run / "export"
        export(run, folder)
        print(json.dumps({"run": str(run), "folder": str(folder)}) if args.json else f"exported {run} to {folder}")

    cli.run_job(job)


if __name__ == "__main__":
    main()
