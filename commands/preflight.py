"""`stagecraft preflight 13b`: whether machines, storage and network are ready for a run. Real ranks look."""

import json
import os
import sys
from pathlib import Path

from commands import cli
from launch.clusters import description
from launch.preflight.asked import Asked, Values
from launch.preflight.show import show
from recipes.registry import load
from support.errors import WRONG_INPUT
from support.json_object import finite


def main() -> None:
    """Start ranks that look; be one of them where a launcher started this process."""
    parser = cli.Parser("Compare the machines of a run before it: versions, GPUs, memory, storage, clocks, network.")
    parser.add_argument("recipe", help="its name, for example 13b; stagecraft recipes lists them")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON; by default the recipe's")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--cluster", help="a cluster by name, or its file: its GPUs, hosts and storage")
    parser.add_argument("--hostfile", help="look at the hosts of this file, through the deepspeed launcher")
    parser.add_argument("--processes", type=int, help="ranks; by default the GPUs here, at most those planned, else 2")
    parser.add_argument("--run-dir", help="where the run will live, on storage that all machines share")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    args = parser.parse_args()
    found: list[Values] = []
    status = 0

    def asked() -> tuple[Asked, description.Cluster | None]:
        cluster = description.read(description.file_of(args.cluster)) if args.cluster else None
        gpu, per_node, runs = (cluster.gpu, cluster.gpus_per_node, cluster.runs) if cluster else ("", 0, "")
        where = args.run_dir or (str(Path(runs)) if runs else None)
        run = (args.deepspeed_config, tuple(args.settings), where)
        return Asked(load(args.recipe), *run, gpu=gpu, gpus_per_node=per_node), cluster

    def as_rank() -> None:
        nonlocal status
        from launch.preflight.rank import be_rank
        from training import presence

        presence.watch_launcher()
        print_json = lambda values: print(json.dumps(finite(values)), flush=True)  # noqa: E731
        status = be_rank(asked()[0], print_json if args.json else show)

    def job() -> Values:
        from launch.preflight.start import hostfile_of, preflight

        wanted, cluster = asked()
        hostfile = hostfile_of(cluster, args.hostfile)
        file = description.file_of(args.cluster) if args.cluster else None
        found.append(preflight(wanted, args.processes, hostfile, file))
        if not args.json:
            show(found[0])
        return found[0]

    if "RANK" in os.environ:
        cli.run_job(as_rank)
        sys.stdout.flush()
        os._exit(status)  # past C++'s own clearing up
    cli.run_job(job, args.json)
    if not found[0]["ok"]:
        raise SystemExit(WRONG_INPUT)


if __name__ == "__main__":
    main()
