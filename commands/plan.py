"""`stagecraft plan 530b`: what a recipe needs, before it runs. Needs no GPU and imports no torch."""

import argparse
import dataclasses
from pathlib import Path

from commands import cli
from planner.hardware import CATALOGUE, find
from planner.planning import cluster_machine, own_step, plan, saves
from planner.ranks import check_ranks
from planner.saving import STORAGE_GB_S
from planner.show import show
from planner.timing import Machine
from planner.values import Plan
from recipes.recipe import Recipe
from recipes.registry import ROOT, load, names
from recipes.settings import override
from support.errors import UserError

TOP = 10  # layouts that a search shows


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
    parser.add_argument("--storage", type=float, metavar="GB/S", help=f"speed of a save, else {STORAGE_GB_S:g}")
    parser.add_argument(
        "--verify", action="store_true", help="build every distinct rank on the meta device and compare"
    )
    parser.add_argument("--search", action="store_true", help="the best layouts for this cluster")
    parser.add_argument("--top", type=int, help=f"how many of them, else {TOP}")
    parser.add_argument("--plot", metavar="PNG", help="a picture of the pipeline's schedule and of the memory")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def wanted(args: argparse.Namespace) -> tuple[Recipe, Machine | None]:
    """The recipe and the machine that the flags describe. Errors: `UserError` for values that cannot be."""
    for name in ("nodes", "gpus_per_node", "world_size", "seq_length", "network", "price", "storage", "top"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            least = "at least 1" if isinstance(value, int) else "above 0 and finite"
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {least}")
    if args.nodes is not None and args.world_size is not None:
        raise UserError("--nodes and --world-size are both given; give one of them")
    unused = [name for name in ("verify", "plot", "price", "storage") if args.search and getattr(args, name)]
    if unused:
        raise UserError(f"--search does not go with --{unused[0]}; plan the layout that is found with --set")
    if args.top is not None and not args.search:
        raise UserError("--top is of --search; give both")
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
        raise UserError(f"--{timed[0]} needs a predicted time; {recipe.name} is planned for no GPU, give --gpu")
    return dataclasses.replace(recipe, cluster=cluster), machine


def with_costs(values: Plan, recipe: Recipe, args: argparse.Namespace) -> Plan:
    """Adds what depends on a price and on the storage."""
    if args.storage is not None:
        step_seconds = values["time"]["step_seconds"] if "time" in values else 0.0
        values["saving"] = saves(recipe, values["world_size"], step_seconds, args.storage)
    if args.price is not None and "time" in values:
        values |= {"price": args.price, "cost": args.price * values["time"]["gpu_hours"]}
    return values


def main() -> None:
    args = parser().parse_args()

    def job() -> object:
        recipe, machine = wanted(args)
        path = Path(args.deepspeed_config or ROOT / recipe.engine)
        world = args.world_size or recipe.cluster.world_size
        if args.search:
            from planner import search

            return search.run(recipe, path, world, machine, args.top or TOP, args.json)
        check_ranks(recipe, path, world, machine, 1 if args.world_size else recipe.cluster.gpus_per_node)
        values = with_costs(plan(recipe, path, world, machine), recipe, args)
        if machine is not None and not values["memory"]["fits"]:
            from planner.search import remedy, smallest

            values["remedy"] = remedy(recipe, path, world, machine)
            values["smallest_cluster_nodes"] = smallest(recipe, path, machine) or None
        if args.verify:
            from planner.verify import verify

            values["verified"] = verify(recipe, path, world)
        if args.plot:
            from planner.plot import draw

            title = f"{recipe.name} on {world:,} {machine.gpu.name if machine else 'ranks'}"
            draw(own_step(recipe, path, world), machine, values["memory"], title, Path(args.plot))
        if args.json:
            return values
        show(values)
        if args.verify:
            from planner.verify import show_proof

            show_proof(values["verified"])
        if args.plot:
            print(f"  picture                   {args.plot}")
        if "remedy" in values:
            print(f"  {values['remedy']}")
        return values

    cli.run_job(job, args.json)
