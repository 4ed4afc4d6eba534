"""A run as a Hugging Face folder: weights in shards, configurations, tokeniser and card."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from inference.form import Form
from inference.weights import Weights
from support.errors import UserError
from support.files import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|model\.safetensors\.index)\.json|chat_template\.jinja"
    r"|README\.md|model(-\d{5}-of-\d{5})?\.safetensors"
)
INDEX = "model.safetensors.index.json"


def check(folder: Path) -> None:
    """Whether an export may take a folder's place. Errors: `UserError` where that holds anything else."""
    if not folder.exists():
        return
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else [""]
    if names and not ("config.json" in names and all(map(FILES.fullmatch, names))):
        raise UserError(f"{folder} exists and is not an export; give another --out")


def write(folder: Path, weights: Weights, tokeniser: "PreTrainedTokenizerFast", card: str, form: Form) -> None:
    """Write the folder, whole or not at all. One shard and a tensor are in memory.

    The tokeniser pads with its end-of-text token, where it has no pad token, and on the left: so a batch of prompts can
    be gone on from. Errors: `UserError` where the model has no GPT-2 form.
    """
    from transformers import GenerationConfig

    from data.tokens import tokenisers
    from model.huggingface import hf_config

    entries = tokenisers.entries(tokeniser)
    config = hf_config(weights.config, entries, tokeniser.eos_token_id, tokeniser.pad_token_id)
    config.architectures, config.dtype = ["GPT2LMHeadModel"], form.torch_dtype
    tokeniser.model_max_length = weights.config.seq_length
    tokeniser.padding_side = tokeniser.init_kwargs["padding_side"] = "left"  # it saves those of the second kind
    with whole_folder(folder) as scratch:
        _write_shards(scratch, weights, entries, form)
        config.save_pretrained(str(scratch))
        GenerationConfig.from_model_config(config).save_pretrained(str(scratch))
        tokeniser.save_pretrained(str(scratch))
        (scratch / "README.md").write_text(card)
        for file in scratch.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(scratch.stat().st_mode & 0o666)


def _write_shards(folder: Path, weights: Weights, entries: int, form: Form) -> None:
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    from model.huggingface import hf_name, hf_shape, to_hf_value

    dtype: torch.dtype = getattr(torch, form.torch_dtype)
    ours = {hf_name(name): name for name in weights.shapes}
    planned = {
        theirs: torch.empty(hf_shape(name, weights.shapes[name], entries), dtype=dtype, device="meta")
        for theirs, name in ours.items()
    }
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=form.shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        shard = {
            theirs: to_hf_value(ours[theirs], weights.read(ours[theirs]).to(dtype), weights.config, entries)
            for theirs in names
        }
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard  # before the next one is read
    if plan.is_sharded:
        parameters = sum(tensor.numel() for tensor in planned.values())
        index = {"metadata": {"total_parameters": parameters, **plan.metadata}, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
