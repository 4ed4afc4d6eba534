"""Does the engine cost anything? A recipe under DeepSpeed beside a loop of plain PyTorch.

`python -m bench.plain` trains the same shape on the same samples in the same order twice: through the recipe (the
deepspeed launcher, the recipe's JSON), and here, in one process, with torch.optim.AdamW and nothing else. It prints
the validation loss and the speed of both and their ratios.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from commands import cli
from data.samples.mixture import Mixture
from launch.local import world_size
from model.gpt import GPT
from model.init import init_weights
from model.loss import token_losses
from recipes.recipe import Recipe
from recipes.registry import load
from recipes.settings import override
from run.prepared import recipe_data
from support.json_object import JsonObject

CLIP = 1.0  # as the shipped JSON


@dataclass(frozen=True)
class Result:
    """Validation loss in nats a token, and the median speed."""

    loss: float
    tokens_per_second: float


def plain(recipe: Recipe, data: Mixture, steps: int, autocast: bool) -> Result:
    """The reference: one process, plain PyTorch, fp32 weights; the matrix products in bf16 where `autocast` says so."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT(recipe.model)
    init_weights({p: name for name, p in model.named_parameters()}, recipe.model, recipe.seed)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.optimizer.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
    )
    stream = data.training(recipe.model.seq_length, recipe.seed)
    batch, speeds = recipe.batch.global_batch, []
    for step in range(steps):
        began = time.perf_counter()
        rate = recipe.optimizer.lr * recipe.schedule.lr_ratio((step + 1) * recipe.tokens_per_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        samples = torch.from_numpy(stream.batch(step * batch, batch)).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(samples[:, :-1])
        loss = token_losses(logits, samples[:, 1:], data.entries).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        speeds.append(recipe.tokens_per_step / (time.perf_counter() - began))
        if (step + 1) % 100 == 0:
            print(f"plain step {step + 1}/{steps}  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return Result(_validate(model.eval(), data, recipe, device), statistics.median(speeds))


@torch.no_grad()
def _validate(model: GPT, data: Mixture, recipe: Recipe, device: str) -> float:
    held_out = data.held_out(recipe.model.seq_length, recipe.intervals.final_samples)
    samples, mask = (torch.from_numpy(array) for array in held_out)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for first in range(0, len(samples), recipe.batch.global_batch):
        part = slice(first, first + recipe.batch.global_batch)
        logits = model(samples[part, :-1].to(device))
        losses = token_losses(logits, samples[part, 1:].to(device), data.entries)
        total += torch.stack(((losses.double() * mask[part].to(device)).sum(), mask[part].sum().to(device)))
    return float(total[0] / total[1])


def engine(recipe: Recipe, settings: list[str], steps: int, run_dir: Path) -> Result:
    """The recipe itself, as its users run it."""
    command = [sys.executable, "-m", f"recipes.{recipe.name}", "--run-dir", str(run_dir), "--max-steps", str(steps)]
    subprocess.run([*command, *(["--set", *settings] if settings else [])], check=True, stdout=sys.stderr)
    report = json.loads((run_dir / "report.json").read_text())
    return Result(report["validation_loss"], report["tokens_per_second"])


def main() -> None:
    parser = cli.Parser("Train a recipe under DeepSpeed and in plain PyTorch; print losses, speeds and their ratios.")
    parser.add_argument("recipe", nargs="?", default="gpt_tiny")
    parser.add_argument("--steps", type=int, help="how many; by default the recipe's budget")
    parser.add_argument("--autocast", action="store_true", help="bf16 matrix products in plain PyTorch instead of fp32")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        recipe = override(load(args.recipe), args.settings)
        steps = args.steps or recipe.train_steps
        data = recipe_data(recipe, lambda line: None)
        with tempfile.TemporaryDirectory() as scratch:
            ours = engine(recipe, args.settings, steps, Path(scratch) / "run")
        theirs = plain(recipe, data, steps, args.autocast)
        values = {
            "recipe": recipe.name,
            "steps": steps,
            "ranks": world_size(None, None),
            "engine_loss": ours.loss,
            "plain_loss": theirs.loss,
            "loss_ratio": ours.loss / theirs.loss,
            "engine_tokens_per_second": ours.tokens_per_second,
            "plain_tokens_per_second": theirs.tokens_per_second,
            "speed_ratio": ours.tokens_per_second / theirs.tokens_per_second,
        }
        if args.json:
            return values
        print(f"{recipe.name}, {steps} steps   validation loss   tokens/s")
        print(f"DeepSpeed, {values['ranks']} ranks      {ours.loss:15.4f} {ours.tokens_per_second:10,.0f}")
        kind = "bf16 autocast" if args.autocast else "fp32"
        print(f"plain PyTorch, {kind}  {theirs.loss:9.4f} {theirs.tokens_per_second:10,.0f}")
        print(f"ratio                  {values['loss_ratio']:15.4f} {values['speed_ratio']:10.2f}")
        return values

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
