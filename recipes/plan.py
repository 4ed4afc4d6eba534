"""What a run needs, before it runs: `python -m recipes.plan gpt_345m`. Needs no GPU and imports no torch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from model import engine_config
from recipes import cli
from recipes.recipe import ROOT, Recipe, load, names, override
from recipes.run import data_degree, resolve_engine


def state_bytes(config: dict[str, Any], num_parameters: int, data_degree: int) -> dict[str, float]:
    """Bytes of weights, gradients and optimiser states on a rank with `num_parameters`; activations come on top.

    Rajbhandari et al. 2020 (arXiv:1910.02054), section 3.1 and figure 1: ZeRO stage 1 divides the optimiser states by
    the data degree, stage 2 the gradients too, stage 3 the weights too. A half-precision run has an fp32 copy of the
    weights among its optimiser states.
    """
    stage = config.get("zero_optimization", {}).get("stage", 0)
    half = engine_config.precision(config) != "fp32"
    weight = 2 if half else 4
    accumulated = config.get("data_types", {}).get("grad_accum_dtype", "")
    gradient = 4 if accumulated == "fp32" else weight
    moments = 8 + (4 if half else 0)

    def share(size: int, divided_from: int) -> float:
        return size * num_parameters / (data_degree if stage >= divided_from else 1)

    return {"weights": share(weight, 3), "gradients": share(gradient, 2), "optimizer_states": share(moments, 1)}


def plan(recipe: Recipe, config_path: Path, world_size: int) -> dict[str, Any]:
    """The arithmetic of a recipe at a world size. Errors: `ValueError` where it does not work out."""
    config = engine_config.read(config_path)
    resolved = resolve_engine(recipe, config, config_path, world_size)
    degree, sliced = data_degree(recipe, world_size), recipe.layout.tp * recipe.layout.pp
    return {
        "recipe": recipe.name,
        "status": recipe.status,
        "parameters": recipe.model.num_parameters,
        "flops_per_token": recipe.model.flops_per_token,
        "tokens_per_step": resolved.json["train_batch_size"] * recipe.model.seq_length,
        "steps": recipe.train_steps,
        "train_tokens": recipe.schedule.train_tokens,
        "train_flops": recipe.train_flops,
        "world_size": world_size,
        "global_batch": resolved.json["train_batch_size"],
        "micro_batch": resolved.json["train_micro_batch_size_per_gpu"],
        "gradient_accumulation": resolved.json["gradient_accumulation_steps"],
        "precision": resolved.dtype,
        "zero_stage": config.get("zero_optimization", {}).get("stage", 0),
        "layout": dataclasses.asdict(recipe.layout),
        "data_degree": degree,
        "bytes_per_rank": state_bytes(config, recipe.model.num_parameters // sliced, degree * recipe.layout.ulysses),
        "checkpoint_bytes": 12 * recipe.model.num_parameters,
        "deviations": list(resolved.deviations),
    }


def show(values: dict[str, Any]) -> None:
    """Print a plan."""
    states, layout = values["bytes_per_rank"], values["layout"]
    rows = {
        "status": values["status"],
        "parameters": f"{values['parameters']:,}",
        "model FLOPs a token": f"{values['flops_per_token'] / 1e6:,.1f} M",
        "tokens a step": f"{values['tokens_per_step']:,}",
        "steps": f"{values['steps']:,} for {values['train_tokens'] / 1e9:,.3g} B tokens",
        "model FLOPs of the run": f"{values['train_flops']:.2e}",
        "global batch": f"{values['global_batch']} = micro-batch {values['micro_batch']} x accumulation "
                        f"{values['gradient_accumulation']} x data degree {values['data_degree']}",
        "layout": f"{values['world_size']:,} ranks = tensor {layout['tp']} x pipeline {layout['pp']} "
                  f"x Ulysses {layout['ulysses']} x data {values['data_degree']}",
        "engine": f"{values['precision']}, ZeRO stage {values['zero_stage']}",
        "a rank's states": ", ".join(f"{name.replace('_', ' ')} {size / 1e9:,.3f} GB" for name, size in states.items())
                           + f"; {sum(states.values()) / 1e9:,.3f} GB without activations",
        "a checkpoint": f"{values['checkpoint_bytes'] / 1e9:,.3f} GB",
    }  # fmt: skip
    print(values["recipe"])
    for name, value in rows.items():
        print(f"  {name:22s}  {value}")
    for deviation in values["deviations"]:
        print(f"  deviates from the recipe: {deviation}")


def main() -> None:
    parser = cli.Parser("The arithmetic of a recipe: parameters, batch, steps, FLOPs, memory of the model's states.")
    parser.add_argument("recipe", help=f"one of {', '.join(names())}")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON; by default the recipe's")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--world-size", type=int, help="how many ranks; by default the recipe's reference cluster")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> None:
        recipe = override(load(args.recipe), args.settings)
        world = recipe.cluster.world_size if args.world_size is None else args.world_size
        if world < 1:
            raise ValueError(f"--world-size is {world}; it must be at least 1")
        path = Path(args.deepspeed_config or ROOT / recipe.engine)
        values = plan(recipe, path, world)
        print(json.dumps(values)) if args.json else show(values)

    cli.run_job(job)


if __name__ == "__main__":
    main()
