"""A cluster as one uses it: where its nodes are, what they have, and what its scheduler wants to hear.

A file of TOML says it, one of ours or of the user's own. The recipe says what it was planned for; the file says what
there is.
"""

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

HERE = Path(__file__).resolve().parent
Kind = Literal["local", "hostfile", "slurm", "kubernetes", "azureml"]
Link = Literal["infiniband", "roce", "efa", "ethernet"]
STRICT: dict[str, str] = {"extra": "forbid"}  # pydantic: an unknown field is an error


@dataclass(frozen=True)
class Hostfile:
    """How ranks are started over a hostfile: DeepSpeed's `--launcher`, and which of the hosts."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    path: str = ""
    launcher: Literal["pdsh", "ssh", "openmpi", "mpich"] = "ssh"
    include: str = ""
    exclude: str = ""
    ssh_port: int = 22


@dataclass(frozen=True)
class Slurm:
    """The words of a Slurm cluster; empty ones are not said."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    gpus: bool = True  # whether the cluster counts GPUs (GRES); where it does not, a node is taken whole
    container: Literal["", "pyxis", "apptainer"] = ""
    mounts: tuple[str, ...] = ()  # source:target, for the container


@dataclass(frozen=True)
class Kubernetes:
    """The words of a Kubernetes cluster with Kubeflow's trainer; empty ones are not said."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    api: Literal["trainjob", "pytorchjob"] = "trainjob"
    namespace: str = "default"
    gpu_resource: str = "nvidia.com/gpu"
    rdma_resource: str = ""  # for example rdma/hca_shared_devices_a
    rdma_count: int = 1
    shared_memory: str = "64Gi"
    volume_claim: str = ""  # mounted where `runs` says
    secret: str = ""  # holds the variables that `secrets` names
    queue: str = ""  # of Kueue
    gang: Literal["", "kueue", "volcano"] = ""


@dataclass(frozen=True)
class AzureML:
    """The words of an Azure ML workspace."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    compute: str = ""
    experiment: str = "stagecraft"
    environment: str = ""  # azureml:name:version; else the cluster's `image`
    datastore: str = "azureml://datastores/workspaceblobstore/paths/stagecraft"


@dataclass(frozen=True)
class Cluster:
    """A cluster. `nodes` and `gpus_per_node` of 0 and an empty `gpu` are the recipe's, or what a machine has.

    `runs` is the storage that all nodes share, where run directories lie; empty: as on this machine. `time_limit` is
    how long the scheduler lets a job run, `[days-]hours:minutes:seconds`. `setup` are lines of shell that each node
    runs before, such as `module load cuda/13`. `secrets` names variables of the environment that ranks get and nobody
    is shown.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    kind: Kind
    nodes: int = 0
    gpus_per_node: int = 0
    gpu: str = ""
    link: Link = "infiniband"
    time_limit: str = ""
    runs: str = ""
    image: str = ""
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ("WANDB_API_KEY", "HF_TOKEN")
    hostfile: Hostfile = field(default_factory=Hostfile)
    slurm: Slurm = field(default_factory=Slurm)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
    azureml: AzureML = field(default_factory=AzureML)

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")


def built_in() -> dict[str, Path]:
    """The clusters that come with the project, by name."""
    return {path.stem: path for path in sorted(HERE.glob("*.toml"))}


def file_of(text: str) -> Path:
    """The file that `--cluster` means: a built-in name, or a path. Errors: `UserError` that names the nearest."""
    path = built_in().get(text) or Path(text)
    if path.is_file():
        return path.resolve()
    raise UserError(f"there is no cluster {text!r}; {hint(text, built_in())}, or give a file such as mine.toml")


def label(path: Path) -> str:
    """What one gives to `--cluster` for a file: the name of one that comes with the project, else its path."""
    return next((name for name, file in built_in().items() if file == path), str(path))


def read(path: Path) -> Cluster:
    """The cluster of a file. Errors: `UserError` of one line that says file, key and remedy."""
    from pydantic import TypeAdapter, ValidationError

    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}; write TOML, as in {HERE / 'slurm.toml'}") from None
    _check_keys(values, Cluster, path)
    try:
        return TypeAdapter(Cluster).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {place}: {message}" if place else f"{path}: {message}") from None


def _check_keys(values: JsonObject, kind: Any, path: Path, prefix: str = "") -> None:
    """Errors: `UserError` for a key that is not known, with the nearest that is."""
    types, known = get_type_hints(kind), [each.name for each in fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path}: there is no key {prefix}{key}; {hint(key, known)}")
        if is_dataclass(types[key]) and isinstance(value, dict):
            _check_keys(value, types[key], path, f"{prefix}{key}.")
