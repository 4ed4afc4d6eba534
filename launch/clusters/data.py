"""Prepare a recipe's data where a cluster keeps it."""

import os
import shlex
import sys
from pathlib import Path
from typing import Protocol, cast

from launch.clusters.description import Cluster, file_of, read
from launch.clusters.submit import check_secrets, is_secret, scheduler
from run.directory import runs_root
from support.errors import UserError
from support.files import write
from support.json_object import JsonObject

DEFAULTS = (0, "stop", "auto")  # of prepare's flags: they need not be said


class Preparing(Protocol):
    """What the module of a kind of cluster has besides, where its scheduler can prepare data. Errors: `UserError`."""

    def render_data(self, recipe: str, words: tuple[str, ...], cluster: Cluster, nodes: int) -> str:
        """The text that is submitted."""

    def submit_data(self, file: Path, nodes: int) -> tuple[str, str]:
        """Submit it; returns the ids of the job that does the work, and of the one that puts all together."""


def prepared_there(
    recipe: str,
    flags: dict[str, object],
    settings: list[str],
    cluster_name: str | None,
    nodes: int,
    dry_run: bool,
) -> JsonObject | None:
    """Have a cluster's scheduler prepare a recipe's data on so many nodes; `flags` are those of `prepare`.

    None where this machine is to do it: its environment is then as the cluster's file says. Errors: `UserError`.
    """
    file = file_of("local" if cluster_name is None else cluster_name)
    cluster = read(file)
    node = flags.pop("node")
    given = {name: value for name, value in flags.items() if value not in DEFAULTS}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += ["--set", *settings] if settings else []
    if cluster.kind in ("local", "hostfile"):
        words += ["--nodes", str(nodes), "--node", str(node)] if nodes > 1 else []
        return _here(recipe, words, cluster, dry_run)
    root = Path(cluster.runs or runs_root().absolute())
    module = cast(Preparing, scheduler(cluster.kind))
    if not hasattr(module, "render_data"):
        azure = f"the folder of {cluster.azureml.datastore}"
        place = azure if cluster.kind == "azureml" else cluster.runs or f"what runs says in {file}"
        raise UserError(
            f"a cluster of kind {cluster.kind} prepares no data; give stagecraft prepare {recipe} where its storage "
            f"is mounted, with STAGECRAFT_RUNS set to {place}"
        )
    if nodes < 1:
        raise UserError(f"--nodes is {nodes}; it must be at least 1")
    text = module.render_data(recipe, tuple(words), cluster, nodes)
    check_secrets(text, cluster.secrets, file)
    script, jobs = root / f"data-{recipe}.sh", tuple[str, ...]()
    if dry_run:
        print(text.rstrip("\n"))
    else:
        try:
            root.mkdir(parents=True, exist_ok=True)
            write(script, text)
        except OSError as error:
            raise UserError(f"{script} cannot be written: {error.strerror}; set runs in {file}") from None
        jobs = module.submit_data(script, nodes)
        print(f"submitted the data of {recipe} on {nodes} nodes as {cluster.kind} jobs {' and '.join(jobs)}")
    return {"recipe": recipe, "kind": cluster.kind, "file": str(script), "text": text, "jobs": list(jobs)}


def _here(recipe: str, words: list[str], cluster: Cluster, dry_run: bool) -> JsonObject | None:
    variables = {**({"STAGECRAFT_RUNS": cluster.runs} if cluster.runs else {}), **cluster.environment}
    if not dry_run:
        os.environ.update(variables)
        return None
    named = [f"{k}={'***' if is_secret(k, cluster.secrets) else shlex.quote(v)}" for k, v in variables.items()]
    text = " ".join([*named, shlex.join([sys.executable, "-m", "commands", "prepare", recipe, *words])]) + "\n"
    print(text.rstrip("\n"))
    return {"recipe": recipe, "kind": cluster.kind, "file": None, "text": text, "jobs": []}
