"""`stagecraft clusters`: the clusters that come with the project; `stagecraft clusters mine.toml` checks one."""

import dataclasses
from pathlib import Path

from commands import cli
from launch.clusters import network
from launch.clusters.description import built_in, file_of, label, read
from launch.clusters.submit import is_secret
from support.json_object import JsonObject
from support.terminal import print_table

SEVERAL = 2  # nodes: what more of them are told is the same


def described(file: Path) -> JsonObject:
    """A line of the list. Errors: `UserError` for a file that is wrong."""
    cluster = read(file)
    variables = network.environment(cluster, 1 if cluster.kind == "local" else SEVERAL, own={})
    words = dataclasses.asdict(getattr(cluster, cluster.kind)) if cluster.kind != "local" else {}
    return {
        "name": label(file),
        "file": str(file),
        "kind": cluster.kind,
        "nodes": (1 if cluster.kind == "local" else cluster.nodes) or None,
        "gpus_per_node": cluster.gpus_per_node or None,
        "gpu": cluster.gpu or None,
        "link": network.link_of(cluster),
        "time_limit": cluster.time_limit or None,
        "runs": cluster.runs or None,
        "image": cluster.image or None,
        "setup": list(cluster.setup),
        "words": {key: value for key, value in words.items() if value is False or value},
        "environment": {n: "***" if is_secret(n, cluster.secrets) else value for n, value in variables.items()},
        "secrets": list(cluster.secrets),
    }


def show(clusters: list[JsonObject]) -> None:
    """Print the list; of one cluster all that it says."""
    if len(clusters) == 1:
        for key, value in clusters[0].items():
            lines = [f"{k} = {v}" for k, v in value.items()] if isinstance(value, dict) else value or []
            for number, line in enumerate([lines] if isinstance(lines, (str, int)) else lines):
                print(f"{'' if number else key:14s} {line}")
        return
    from rich.table import Table

    table = Table("cluster", "kind", "nodes", "GPUs a node", "GPU", "link", "time limit", "words")
    for each in clusters:
        otherwise = "as there are" if each["kind"] in ("local", "hostfile") else "as planned"
        size = [str(each[key] or otherwise) for key in ("nodes", "gpus_per_node", "gpu")]
        words = ", ".join(f"{key} {'yes' if value is True else value}" for key, value in each["words"].items())
        link = "-" if each["kind"] == "local" else each["link"]
        table.add_row(each["name"], each["kind"], *size, link, each["time_limit"] or "-", words)
    print_table(table)


def main() -> None:
    parser = cli.Parser(
        "List the clusters that come with the project, or check a file of your own and show what it says."
    )
    parser.add_argument("cluster", nargs="?", metavar="NAME|FILE", help="a cluster by its name, or a TOML file")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        found = [described(file) for file in ([file_of(args.cluster)] if args.cluster else built_in().values())]
        if not args.json:
            show(found)
        return found

    cli.run_job(job, args.json)
