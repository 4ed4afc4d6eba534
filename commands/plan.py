"""`stagecraft plan 530b`: what a recipe needs, before it runs. Needs no GPU and imports no torch."""

import argparse
from pathlib import Path

from commands import cli, decode_flags
from planner.hardware import CATALOGUE
from planner.planning import own_step
from planner.plot import draw
from planner.request import Request, answer, wanted
from planner.saving import STORAGE_GB_S
from planner.search import best
from planner.show import show, show_found
from planner.values import DecodePlan, Found, Plan
from planner.verify import verify
from recipes.registry import ROOT, load
from recipes.settings import override
from support.errors import UserError

TOP = 10  # layouts that a search shows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser("What a recipe needs: memory of every rank, time, cost; without a GPU.")
    parser.add_argument("recipe", help="its name, for example 345m; stagecraft recipes lists them")
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
    parser.add_argument("--verify", action="store_true", help="build every distinct rank on the meta device, compare")
    parser.add_argument("--search", action="store_true", help="the best layouts for this cluster")
    parser.add_argument("--top", type=int, help=f"how many of them, else {TOP}")
    parser.add_argument("--plot", metavar="PNG", help="a picture of the pipeline's schedule and of the memory")
    decode_flags.add(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def main() -> None:
    args = parser().parse_args()

    def job() -> Plan | Found | DecodePlan:
        wish = decode_flags.wish(args)
        asked = (args.gpu, args.nodes, args.gpus_per_node, args.world_size, args.seq_length, args.network)
        request = Request(*asked, args.price, args.storage, args.top)
        unused = [name for name in ("verify", "plot", "price", "storage") if args.search and getattr(args, name)]
        if unused:
            raise UserError(f"--search does not go with --{unused[0]}; plan the layout that is found with --set")
        if args.top is not None and not args.search:
            raise UserError("--top is of --search; give both")
        recipe, world, machine = wanted(override(load(args.recipe), args.settings), request)
        if wish:
            return decode_flags.planned(recipe, machine, wish, args.json)
        path = Path(args.deepspeed_config or ROOT / recipe.engine)
        if args.search:
            found = best(recipe, path, world, machine, args.top or TOP)
            if not args.json:
                show_found(found)
            return found
        values = answer(recipe, path, world, machine, request)
        if args.verify:
            values["verified"] = verify(recipe, path, world)
        if args.plot:
            title = f"{recipe.name} on {world:,} {machine.gpu.name if machine else 'ranks'}"
            draw(own_step(recipe, path, world), machine, values, title, Path(args.plot))
        if not args.json:
            show(values)
            if args.plot:
                print(f"  picture                   {args.plot}")
        return values

    cli.run_job(job, args.json)
