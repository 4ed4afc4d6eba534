"""What does rounding the weights of a GPT-2 cost, and what does it save?

`python -m bench.quantize EXPORT --data FOLDER/validation` prints bytes, loss and speed of an exported model in the
forms that torch, torchao and GGUF round to; without a folder, of a recipe's initial weights. Speed is tokens a second
of processor time, one thread, eight greedy texts at once; the forms take turns, and medians count.
"""

import copy
import io
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from commands import cli
from data.tokens import prepare
from model.convert.gguf_file import library
from model.gpt import GPT
from model.huggingface import to_hf
from model.init import init_weights
from recipes.registry import load
from support.errors import UserError
from support.json_object import JsonObject

TEXTS, NEW = 8, 48
FORMS = ("fp32", "bf16", "torch's dynamic int8", "torchao's weight-only int8", "GGUF q8_0", "GGUF q4_0")


def in_form(model: nn.Module, form: str) -> tuple[nn.Module, int]:
    """A model in a form, and its bytes. Errors: `UserError` where a package is missing."""
    if form.startswith("GGUF"):
        return model, rounded(model, form.partition(" ")[2].upper())
    if form == "bf16":
        model.bfloat16()
    elif form == "torch's dynamic int8":  # products too, with activations rounded as they come
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    elif form == "torchao's weight-only int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError:
            raise UserError(f"{form} needs the package torchao; install it with pip install torchao==0.18.0") from None
        quantize_(model, Int8WeightOnlyConfig(version=2))
    torch.save(model.state_dict(), file := io.BytesIO())
    return model, file.tell()


def rounded(model: nn.Module, kind: str) -> int:
    """Round weights as a GGUF of a kind has them, unpacked again as transformers does it; the bytes when packed."""
    gguf, total = library(), 0
    for name, value in model.named_parameters():
        whole = value.dim() < 2 or "wpe" in name or value.shape[-1] % 32 > 0
        as_type = gguf.GGMLQuantizationType["F32" if whole else kind]
        packed = gguf.quants.quantize(value.detach().numpy(), as_type)
        value.data, total = torch.from_numpy(gguf.quants.dequantize(packed, as_type).copy()), total + packed.nbytes
    return total


def in_linears(model: nn.Module) -> nn.Module:
    """The same model with `nn.Linear` for GPT-2's `Conv1D`, which nothing rounds."""
    for name, child in model.named_children():
        if isinstance(child, Conv1D):
            linear = nn.Linear(*child.weight.shape)
            linear.weight.data, linear.bias.data = child.weight.data.t().contiguous(), child.bias.data
            setattr(model, name, linear)
        else:
            in_linears(child)
    return model


def loss(model: Any, data: Path) -> float:
    """Mean loss over the whole windows of a prepared split."""
    shards, length = prepare.shards(data.parent, data.name), model.config.n_positions
    windows = torch.from_numpy(shards.read(0, shards.num_tokens // length * length).astype("int64")).view(-1, length)
    with torch.no_grad():
        losses = [F.cross_entropy(model(x).logits[:, :-1].mT.float(), x[:, 1:]) * len(x) for x in windows.split(16)]
    return float(sum(losses)) / len(windows)


def speed(model: Any) -> float:
    """Tokens a second that it writes."""
    prompts = torch.arange(TEXTS * 4).view(TEXTS, 4)
    how = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    began = time.process_time()
    model.generate(prompts, do_sample=False, **how)
    return TEXTS * NEW / (time.process_time() - began)


def measure(source: nn.Module, data: Path | None, repeats: int) -> list[JsonObject]:
    """A row for each form; those of GGUF are as fast as fp32, for they are unpacked."""
    models = {form: in_form(copy.deepcopy(source), form) for form in FORMS}
    speeds: dict[str, list[float]] = {form: [] for form in FORMS if not form.startswith("GGUF")}
    for _ in range(repeats):
        for form, taken in speeds.items():
            taken.append(speed(models[form][0]))
    return [
        {"form": form, "bytes": size, "loss": data and loss(model, data),
         "tokens_per_second": statistics.median(speeds[form]) if form in speeds else None}
        for form, (model, size) in models.items()
    ]  # fmt: skip


def main() -> None:
    parser = cli.Parser("Print bytes, loss and speed of a GPT-2 whose weights are rounded, a line for each way.")
    parser.add_argument("folder", type=Path, nargs="?", help="an export; by default a recipe's initial weights")
    parser.add_argument("--recipe", default="125m", help="whose shape it has where there is no folder")
    parser.add_argument("--data", type=Path, help="a split of a prepared folder, for the loss")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        warnings.filterwarnings("ignore", module="torch")
        torch.set_num_threads(1)
        if args.folder:
            source = GPT2LMHeadModel.from_pretrained(args.folder, dtype=torch.float32)
        else:
            recipe = load(args.recipe)
            model = GPT(recipe.model)
            init_weights({p: name for name, p in model.named_parameters()}, recipe.model, recipe.seed)
            source = to_hf(model, recipe.model.vocab_size, 0, 0)
        rows = measure(in_linears(source.eval()), args.data, args.repeats)
        for row in [] if args.json else rows:
            told, seconds = row["loss"], row["tokens_per_second"]
            print(f"{row['form']:27} {row['bytes']:13,} bytes", end="")
            print(f"  loss {told:.5f}" if told else "", f"  {seconds:,.0f} tokens a CPU second" if seconds else "")
        return rows

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
