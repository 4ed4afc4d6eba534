"""`stagecraft preflight 13b`: whether machines, storage and network are ready for a run. Real ranks look."""

import json
import os
import sys
from pathlib import Path

from commands import cli
from launch.clusters import description
from launch.clusters.asked import Where
from launch.preflight.asked import Asked, Values
from launch.preflight.show import show
from recipes.registry import load
from support.errors import WRONG_INPUT
from support.json_object import finite
from training import launchers


def main() -> None:
    """Start ranks that look; be one of them where a launcher started this process."""
    parser = cli.Parser("Compare the machines of a run before it: versions, GPUs, memory, storage, clocks, network.")
    parser.add_argument("recipe", help="its name, for example 13b; stagecraft recipes lists them")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON; by default the recipe's")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--cluster", help="a cluster by name, or its file: its GPUs, hosts and storage")
    parser.add_argument("--nodes", type=int, help="of the cluster; by default as its file says, or the recipe")
    parser.add_argument("--dry-run", action="store_true", help="show the job for a cluster's scheduler, do nothing")
    parser.add_argument("--hostfile", help="look at the hosts of this file")
    parser.add_argument("--processes", type=int, help="ranks; by default the GPUs here, at most those planned, else 2")
    parser.add_argument("--run-dir", help="where the run will live, on storage that all machines share")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    args = parser.parse_args()
    found: list[Values] = []
    status = 0
    where = Where(args.cluster, args.nodes, args.dry_run, args.processes, args.hostfile)

    def asked() -> Asked:
        cluster = description.read(where.file) if where.cluster else description.Cluster("local")
        folder = args.run_dir or (str(Path(cluster.runs)) if cluster.runs else None)
        run = (args.deepspeed_config, tuple(args.settings), folder)
        return Asked(load(args.recipe), *run, gpu=cluster.gpu, gpus_per_node=cluster.gpus_per_node)

    def as_rank() -> None:
        nonlocal status
        from launch.preflight.rank import be_rank
        from training import presence

        presence.watch_launcher(seconds=0)  # there is nothing to save
        print_json = lambda values: print(json.dumps(finite(values)), flush=True)  # noqa: E731
        status = be_rank(asked(), print_json if args.json else show)

    def job() -> object:
        from launch.preflight import start, submit

        if submit.is_for_scheduler(where):
            return submit.submitted(asked(), where)
        found.append(start.preflight(asked(), where))
        if not args.json:
            show(found[0])
        return found[0]

    if launchers.is_rank():
        cli.run_job(as_rank)
        sys.stdout.flush()
        os._exit(status)  # past C++'s own clearing up
    cli.run_job(job, args.json)
    if found and not found[0]["ok"]:
        raise SystemExit(WRONG_INPUT)


if __name__ == "__main__":
    main()
