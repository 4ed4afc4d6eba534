"""What a run needs, before it runs: `python -m recipes.plan gpt_530b`. Needs no GPU and imports no torch.

Does it fit, how long does it take, what does it cost, what would be better? `recipes/planning.py` knows the first
three, `recipes/search.py` the last.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from launch.hardware import CATALOGUE, GIGA, find
from model import engine_config
from recipes import cli
from recipes.planning import cluster_machine, own_step, plan
from recipes.recipe import ROOT, Recipe, load, names, override
from recipes.timing import Machine

STORAGE, TOP = 20.0, 10  # GB/s that a checkpoint is saved with; layouts that a search shows


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

    def job() -> Any:
        recipe, machine = wanted(args)
        path = Path(args.deepspeed_config or ROOT / recipe.engine)
        world = args.world_size or recipe.cluster.world_size
        if args.search:
            from recipes import search

            return search.run(recipe, path, world, machine, args.top or TOP, args.json)
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
            return values
        show(values)
        if args.verify:
            from recipes.verify import show as show_verified

            show_verified(values["verified"])
        if args.plot:
            print(f"  picture                   {args.plot}")
        if "remedy" in values:
            print(f"  {values['remedy']}")
        return values

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
