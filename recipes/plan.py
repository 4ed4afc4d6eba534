"""What a run needs, before it runs: `python -m recipes.plan gpt_530b`. Needs no GPU and imports no torch.

Does it fit, how long does it take, what does it cost, what would be better? The formulas are in `model/memory.py` and
`recipes/timing.py`; how good they are is in docs/planner.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from launch.hardware import CATALOGUE, GIGA, GPU, TERA, find
from model import engine_config
from model.memory import rank_bytes
from model.work import Work, work
from recipes import cli
from recipes.recipe import ROOT, Batch, Cluster, Recipe, load, names, override, steps_for
from recipes.run import data_degree, resolve_engine
from recipes.timing import Machine, step_time

CHECKPOINT = 12  # bytes a parameter: fp32 weights and two moments
HOURS = 3600.0
STORAGE, TOP = 20.0, 10  # GB/s that a checkpoint is saved with; layouts that a search shows
USABLE = 0.95  # of a GPU's memory: the driver's own share, and what is not counted


def cluster_machine(cluster: Cluster, network_gb_s: float | None = None) -> Machine | None:
    """The hardware of a cluster, nothing for CPUs. Errors: `ValueError` for a GPU that the catalogue does not know."""
    if cluster.gpu == "cpu":
        return None
    gpu = find(cluster.gpu)
    network = (gpu.network_gb_s if network_gb_s is None else network_gb_s) * GIGA
    return Machine(gpu, cluster.gpus_per_node, network, gpu.link_gb_s * GIGA)


def ramp_steps(recipe: Recipe, batch: Batch) -> list[tuple[int, int]]:
    """(global batch, steps with it) in the order of the run, the ramp's smaller ones first."""
    result, before = [], 0
    for number, size in enumerate(batch.ramp):
        end = min(recipe.train_samples, -(-batch.ramp_samples * (number + 1) // len(batch.ramp)))
        after = steps_for(end, batch)
        result.append((size, after - before))
        before = after
    return [*result, (batch.global_batch, steps_for(recipe.train_samples, batch) - before)]


def memory(step: Work, gpu: GPU | None) -> dict[str, Any]:
    """Bytes of a rank of every pipeline stage by part; the worst stage, and whether it fits."""
    stages = np.arange(int(step.pp))
    parts = {name: np.broadcast_to(size, stages.shape) for name, size in rank_bytes(step, stages).items()}
    totals = np.sum(list(parts.values()), axis=0)
    worst = int(np.argmax(totals))
    largest = max(parts, key=lambda name: float(parts[name][worst]))
    parameters = np.broadcast_to(step.parameters(stages), stages.shape)
    result: dict[str, Any] = {
        "stages": [
            {
                "blocks": int(np.broadcast_to(step.blocks(stages), stages.shape)[stage]),
                "parameters": int(parameters[stage]),
                "bytes": {name: float(size[stage]) for name, size in parts.items()},
                "total_bytes": float(totals[stage]),
            }
            for stage in stages
        ],
        "worst_stage": worst,
        "peak_bytes": float(totals[worst]),
        "largest_part": largest,
    }
    if gpu is not None:
        usable = USABLE * gpu.memory_gb * GIGA
        result |= {"usable_bytes": usable, "headroom_bytes": usable - float(totals[worst])}
        result["fits"] = result["headroom_bytes"] >= 0
    return result


def duration(recipe: Recipe, step: Work, machine: Machine) -> dict[str, Any]:
    """Seconds of a step by part, and what follows from it for the token budget, the ramp's smaller steps counted."""
    timed, gpu = step_time(step, machine), machine.gpu
    seconds, gpus = float(timed.seconds), int(step.gpus)
    model, hardware = float(step.model_flops), float(step.hardware_flops)
    batch = dataclasses.replace(recipe.batch, global_batch=int(step.global_batch))
    sizes, counts = np.array(ramp_steps(recipe, batch), dtype=float).T
    run_seconds = float(np.sum(step_time(dataclasses.replace(step, global_batch=sizes), machine).seconds * counts))
    return {
        "step_seconds": seconds,
        "step_parts": {name: float(value) for name, value in timed.parts.items()},
        "tokens_per_second": float(step.global_batch * step.seq_length) / seconds,
        "model_tflops_per_gpu": model / seconds / gpus / TERA,
        "hardware_tflops_per_gpu": hardware / seconds / gpus / TERA,
        "mfu": model / seconds / gpus / gpu.half_tflops / TERA,
        "run_seconds": run_seconds,
        "days": run_seconds / HOURS / 24,
        "gpu_hours": run_seconds / HOURS * gpus,
        "megawatt_hours": run_seconds / HOURS * gpus * gpu.node_watts / gpu.gpus_per_node / 1e6,
    }


def check_precision(gpu: GPU, dtype: str) -> None:
    """Refuse a GPU that cannot compute in that precision. Errors: `ValueError` with the remedy."""
    if dtype == "bf16" and not gpu.bf16:
        raise ValueError(f"a {gpu.name} has no bf16; give an fp16 JSON with --deepspeed_config")


def check_ranks(recipe: Recipe, path: Path, world: int, machine: Machine | None, unit: int) -> None:
    """Refuse a cluster that the recipe's own layout and batch do not go with.

    `unit` is the ranks of a node, or 1 where ranks were asked for. Errors: `ValueError` with the smallest cluster that
    does where this one is too small, else with the nearest ones.
    """
    layout, needed = recipe.layout, recipe.layout.ranks_per_replica
    cut = f"tp {layout.tp} x pp {layout.pp} x ulysses {layout.ulysses} = {needed}"
    if world < needed:
        more = f"give --world-size {needed} or more"
        if machine is not None:
            from recipes.search import remedy

            more = remedy(recipe, path, world, machine)
        raise ValueError(f"{recipe.name}'s layout {cut} needs at least {needed} ranks, here are {world}; {more}")
    try:
        own_step(recipe, path, world)
    except ValueError as error:
        close = _nearest(recipe, path, world, unit)
        if not close:
            raise
        what = " or ".join(f"{size // unit:,}" for size in close)
        what += " ranks" if unit == 1 else f" nodes of {unit}"
        reason = str(error) if world % needed == 0 else f"layout {cut} does not divide {world} ranks"
        raise ValueError(f"{reason}; the nearest clusters that go with layout and batch: {what}") from None


def _nearest(recipe: Recipe, path: Path, world: int, unit: int) -> list[int]:
    """The next smaller and the next larger number of ranks, in whole units, that the recipe runs on as it is."""
    config = engine_config.read(path)
    batch = config.get("train_batch_size", "auto")
    batch = recipe.batch.global_batch if batch == "auto" else batch
    sizes = [recipe.layout.ranks_per_replica * degree for degree in range(1, batch + 1) if batch % degree == 0]

    def runs(size: int) -> bool:
        try:
            own_step(recipe, path, size)
        except ValueError:
            return False
        return True

    whole = [size for size in sizes if size % unit == 0]
    below = next((size for size in reversed(whole) if size < world and runs(size)), None)
    above = next((size for size in whole if size > world and runs(size)), None)
    return [size for size in (below, above) if size is not None]


def own_step(recipe: Recipe, config_path: Path, world_size: int) -> Work:
    """The step of the recipe's own layout. Errors: `ValueError` where it does not go with the world size."""
    resolved = resolve_engine(recipe, engine_config.read(config_path), config_path, world_size)
    return work(recipe.model, recipe.layout, resolved.json, data_degree(recipe, world_size))


def plan(recipe: Recipe, config_path: Path, world_size: int, machine: Machine | None = None) -> dict[str, Any]:
    """A recipe at a world size; with a machine also its memory's limit and its time.

    Errors: `ValueError` where recipe, JSON and world size do not go together.
    """
    config = engine_config.read(config_path)
    resolved = resolve_engine(recipe, config, config_path, world_size)
    degree = data_degree(recipe, world_size)
    step = work(recipe.model, recipe.layout, resolved.json, degree)
    values = {
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
        "memory": memory(step, machine.gpu if machine else None),
        "checkpoint_bytes": CHECKPOINT * recipe.model.num_parameters,
        "deviations": list(resolved.deviations),
    }
    if machine is not None:
        check_precision(machine.gpu, resolved.dtype)
        values["gpu"] = machine.gpu.name
        values["time"] = duration(recipe, step, machine)
    return values


def show(values: dict[str, Any]) -> None:
    """Print a plan."""
    layout, held = values["layout"], values["memory"]
    worst = held["stages"][held["worst_stage"]]
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
        "fullest rank": f"{held['peak_bytes'] / 1e9:,.1f} GB, {_stage(values)}; most of it {held['largest_part']}",
    }  # fmt: skip
    for name, size in worst["bytes"].items():
        if size >= 0.0005 * worst["total_bytes"]:
            rows[f"  {name}"] = f"{size / 1e9:10,.2f} GB"
    if "fits" in held:
        verdict = "fits" if held["fits"] else "DOES NOT FIT"
        rows["memory"] = (
            f"{verdict}: {held['usable_bytes'] / 1e9:,.1f} GB usable on {values['gpu']}, headroom "
            f"{held['headroom_bytes'] / 1e9:,.1f} GB"
        )
    rows["a checkpoint"] = f"{values['checkpoint_bytes'] / 1e9:,.3f} GB"
    if "save_seconds" in values:
        rows["a checkpoint"] += f", {values['save_seconds']:,.0f} s to save at {values['storage_gb_s']:g} GB/s"
    rows |= _time_rows(values)
    print(values["recipe"])
    for name, value in rows.items():
        print(f"  {name:24s}  {value}")
    for deviation in values["deviations"]:
        print(f"  deviates from the recipe: {deviation}")


def _stage(values: dict[str, Any]) -> str:
    held, stages = values["memory"], values["layout"]["pp"]
    worst = held["worst_stage"]
    if stages == 1:
        return f"all ranks alike, {held['stages'][0]['blocks']} blocks"
    why = "the most micro-batches in flight" if worst == 0 else "logits and loss" if worst == stages - 1 else "blocks"
    return f"pipeline stage {worst + 1} of {stages} ({held['stages'][worst]['blocks']} blocks, {why})"


def _time_rows(values: dict[str, Any]) -> dict[str, str]:
    if "time" not in values:
        return {"time": "not predicted: no GPU of the catalogue; give --gpu"}
    time = values["time"]
    rows = {"a step": f"{time['step_seconds']:,.3f} s, of which"}
    for name, seconds in time["step_parts"].items():
        if abs(seconds) >= 0.0005 * time["step_seconds"]:
            rows[f"  {name}"] = f"{seconds:10,.3f} s  {100 * seconds / time['step_seconds']:5.1f}%"
    rows["speed"] = (
        f"{time['tokens_per_second']:,.0f} tokens/s; {time['model_tflops_per_gpu']:,.1f} model TFLOP/s a GPU = "
        f"{100 * time['mfu']:.1f}% of peak ({time['hardware_tflops_per_gpu']:,.1f} with recomputation)"
    )
    rows["the run"] = (
        f"{time['days']:,.1f} days, {time['gpu_hours']:,.0f} GPU-hours, at most {time['megawatt_hours']:,.0f} MWh"
    )
    if "cost" in values:
        rows["cost"] = f"{values['cost']:,.0f} at {values['price']:g} a GPU-hour"
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser("What a recipe needs: memory of every rank, time, cost; without a GPU.")
    parser.add_argument("recipe", help=f"one of {', '.join(names())}")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON; by default the recipe's")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--gpu", help=f"{', '.join(CATALOGUE)}; by default the recipe's")
    parser.add_argument("--nodes", type=int, help="by default the recipe's")
    parser.add_argument("--gpus-per-node", type=int, help="by default the recipe's, or usual for --gpu")
    parser.add_argument("--world-size", type=int, help="ranks in all, instead of --nodes")
    parser.add_argument("--seq-length", type=int, help="by default the recipe's")
    parser.add_argument("--network", type=float, metavar="GB/S", help="of a node; by default usual for the GPU")
    parser.add_argument("--price", type=float, help="of a GPU-hour, in any currency")
    parser.add_argument("--storage", type=float, metavar="GB/S", help=f"speed of saving a checkpoint, else {STORAGE:g}")
    parser.add_argument(
        "--verify", action="store_true", help="build every distinct rank on the meta device and compare"
    )
    parser.add_argument("--search", action="store_true", help="the best layouts for this cluster")
    parser.add_argument("--top", type=int, help=f"how many of them, else {TOP}")
    parser.add_argument("--plot", metavar="PNG", help="a picture of the pipeline's schedule and of the memory")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def wanted(args: argparse.Namespace) -> tuple[Recipe, Machine | None]:
    """The recipe and the machine that the flags describe. Errors: `ValueError` for values that cannot be."""
    for name in ("nodes", "gpus_per_node", "world_size", "seq_length", "network", "price", "storage", "top"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            least = "at least 1" if isinstance(value, int) else "above 0 and finite"
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be {least}")
    if args.nodes is not None and args.world_size is not None:
        raise ValueError("--nodes and --world-size are both given; give one of them")
    unused = [name for name in ("verify", "plot", "price", "storage") if args.search and getattr(args, name)]
    if unused:
        raise ValueError(f"--search does not go with --{unused[0]}; plan the layout that is found with --set")
    if args.top is not None and not args.search:
        raise ValueError("--top is of --search; give both")
    recipe = override(load(args.recipe), args.settings)
    if args.seq_length is not None:
        recipe = override(recipe, [f"model.seq_length={args.seq_length}"])
    cluster = recipe.cluster
    if args.gpu is not None:
        gpu = find(args.gpu)
        cluster = dataclasses.replace(cluster, gpu=gpu.name, gpus_per_node=gpu.gpus_per_node)
    per_node = cluster.gpus_per_node if args.gpus_per_node is None else args.gpus_per_node
    world = args.world_size
    nodes = cluster.nodes if args.nodes is None else args.nodes
    if world is not None:
        per_node = min(per_node, world)
        nodes = -(-world // per_node)
    cluster = dataclasses.replace(cluster, nodes=nodes, gpus_per_node=per_node)
    machine = cluster_machine(cluster, args.network)
    timed = [name for name in ("network", "price") if machine is None and getattr(args, name) is not None]
    if timed:
        raise ValueError(f"--{timed[0]} needs a predicted time; {recipe.name} is planned for no GPU, give --gpu")
    return dataclasses.replace(recipe, cluster=cluster), machine


def with_costs(values: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Adds what depends on a price and on the storage."""
    values["storage_gb_s"] = STORAGE if args.storage is None else args.storage
    values["save_seconds"] = values["checkpoint_bytes"] / values["storage_gb_s"] / GIGA
    if args.price is not None and "time" in values:
        values |= {"price": args.price, "cost": args.price * values["time"]["gpu_hours"]}
    return values


def main() -> None:
    args = parser().parse_args()

    def job() -> None:
        recipe, machine = wanted(args)
        path = Path(args.deepspeed_config or ROOT / recipe.engine)
        world = args.world_size or recipe.cluster.world_size
        if args.search:
            from recipes import search

            search.run(recipe, path, world, machine, args.top or TOP, args.json)
            return
        check_ranks(recipe, path, world, machine, 1 if args.world_size else recipe.cluster.gpus_per_node)
        values = with_costs(plan(recipe, path, world, machine), args)
        if machine is not None and not values["memory"]["fits"]:
            from recipes.search import remedy, smallest

            values["remedy"] = remedy(recipe, path, world, machine)
            values["smallest_cluster_nodes"] = smallest(recipe, path, machine) or None
        if args.verify:
            from recipes.verify import verify

            values["verified"] = verify(recipe, path, world)
        if args.plot:
            from recipes.plan_plot import draw

            title = f"{recipe.name} on {world:,} {machine.gpu.name if machine else 'ranks'}"
            draw(own_step(recipe, path, world), machine, values["memory"], title, Path(args.plot))
        if args.json:
            print(json.dumps(values))
            return
        show(values)
        if args.verify:
            from recipes.verify import show as show_verified

            show_verified(values["verified"])
        if args.plot:
            print(f"  picture                   {args.plot}")
        if "remedy" in values:
            print(f"  {values['remedy']}")

    cli.run_job(job)


if __name__ == "__main__":
    main()
