"""How many layouts does the search judge in a minute? `python -m bench.search` on one core."""

import os
import time

from commands import cli
from planner import planning, search
from recipes.registry import ROOT, load
from support.errors import UserError

WANTED_LAYOUTS = 100_000


def main() -> None:
    parser = cli.Parser("Time the search over the layouts of ever larger clusters, one hundred thousand of them.")
    parser.add_argument("recipe", nargs="?", default="gpt_530b")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> dict[str, float]:
        if hasattr(os, "sched_setaffinity"):  # macOS has none; numpy's formulas are element-wise, and use one core
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        recipe = load(args.recipe)
        machine = planning.cluster_machine(recipe.cluster)
        if machine is None:
            raise UserError(f"{recipe.name} is planned for no GPU of the catalogue; take another recipe")
        free = search.space(recipe, ROOT / recipe.engine)
        judged = fitting = nodes = 0
        began = time.perf_counter()
        while judged < WANTED_LAYOUTS:
            nodes += 1
            step = search.candidates(free, nodes * recipe.cluster.gpus_per_node)
            if step is not None:
                result = search.judge(step, machine)
                judged, fitting = judged + len(result.seconds), fitting + int(result.fits.sum())
        seconds = time.perf_counter() - began
        values: dict[str, float] = {"layouts": judged, "fitting": fitting, "clusters": nodes, "seconds": seconds}
        values["layouts_per_minute"] = 60 * judged / seconds
        if not args.json:
            print(
                f"{judged:,} layouts of {recipe.name} on 1 to {nodes:,} nodes, {fitting:,} fit: {seconds:.1f} s on one "
                f"core, {values['layouts_per_minute']:,.0f} a minute"
            )
        return values

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
