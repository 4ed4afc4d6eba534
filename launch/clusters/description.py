"""A cluster as one uses it: where its nodes are, what they have, and what its scheduler wants to hear.

A file of TOML says it, one of ours or of the user's own. The recipe says what it was planned for; the file says what
there is. The texts below the fields are those of the editors' schema (`launch.clusters.schema`).
"""

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from launch.clusters.time_limit import seconds_of
from planner import hardware
from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

HERE = Path(__file__).resolve().parent
Kind = Literal["local", "hostfile", "slurm", "kubernetes", "azureml"]
Link = Literal["infiniband", "roce", "efa", "ethernet"]
# pydantic: an unknown field is an error; the text below a field describes it
STRICT: dict[str, str | bool] = {"extra": "forbid", "use_attribute_docstrings": True}
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HOSTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:\d+(,\d+)*)?(@[A-Za-z0-9][A-Za-z0-9._-]*(:\d+(,\d+)*)?)*")
QUANTITY = re.compile(r"[1-9]\d*(Ki|Mi|Gi|Ti)")
MOUNT = re.compile(r"/[^:\s]*:/[^:\s]*(:[a-z,]+)?")
ASSIGNED = re.compile(r"""(?:^|[\s;&(])([A-Za-z_]\w*)=(?!["']?\$)""")  # in a line of shell, but from elsewhere
SECRET = re.compile(r"(.*_)?(KEY|TOKEN|SECRET|PASSWORD)S?")


@dataclass(frozen=True)
class Hostfile:
    """How ranks are started over a hostfile, and on which of its hosts."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = STRICT
    path: str = ""
    """A line a machine: worker-1 slots=8. --hostfile takes its place."""
    launcher: Literal["pdsh", "ssh", "openmpi", "mpich"] = "ssh"
    """What reaches the other machines: ssh is our own starter; the others are those of DeepSpeed's launcher."""
    include: str = ""
    """Only these hosts and GPUs, as DeepSpeed writes it: worker-1@worker-2:0,2."""
    exclude: str = ""
    """All but these, in the same form."""
    ssh_port: int = 0
    """Where ssh listens; 0 is what ssh takes by itself, from ~/.ssh/config."""

    def __post_init__(self) -> None:
        for key in ("include", "exclude"):
            value = getattr(self, key)
            if value and not HOSTS.fullmatch(value):
                raise UserError(f"hostfile.{key} is {value!r}; write hosts as in worker-1@worker-2:0,2")
        if self.include and self.exclude:
            raise UserError("hostfile.include and hostfile.exclude are both given; take one of them out")
        if not 0 <= self.ssh_port < 2**16:
            raise UserError(f"hostfile.ssh_port is {self.ssh_port}; it must be from 1 to 65535, or 0 for ssh's own")


@dataclass(frozen=True)
class Slurm:
    """The words of a Slurm cluster; empty ones are not said."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = STRICT
    partition: str = ""
    """--partition: sinfo lists them."""
    account: str = ""
    """--account: sacctmgr show associations user=$USER lists them."""
    qos: str = ""
    """--qos: sacctmgr show qos lists them."""
    constraint: str = ""
    """--constraint: features that nodes must have; sinfo -o '%N %f' lists them."""
    reservation: str = ""
    """--reservation: scontrol show reservation lists them."""
    gpus: bool = True
    """Whether the cluster counts GPUs (sinfo -o '%N %G' shows them); where it does not, nodes are taken whole."""
    container: Literal["", "pyxis", "apptainer"] = ""
    """What runs the cluster's image on the nodes; empty: nothing."""
    mounts: tuple[str, ...] = ()
    """Folders that the container sees besides the project and the runs: /source:/target."""

    def __post_init__(self) -> None:
        for mount in self.mounts:
            if not MOUNT.fullmatch(mount):
                raise UserError(f"slurm.mounts has {mount!r}; write /source:/target")


@dataclass(frozen=True)
class Kubernetes:
    """The words of a Kubernetes cluster with Kubeflow's trainer; empty ones are not said."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = STRICT
    api: Literal["trainjob", "pytorchjob"] = "trainjob"
    """trainjob is Kubeflow Trainer v2, pytorchjob the operator before it; kubectl api-resources shows which."""
    namespace: str = "default"
    """Where the job lives; kubectl get namespaces lists them."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the device plugin calls a GPU; kubectl describe node shows it."""
    rdma_resource: str = ""
    """What it calls an RDMA adapter, for example rdma/hca_shared_devices_a or vpc.amazonaws.com/efa; empty: none."""
    rdma_count: int = 1
    """How many of them a pod gets."""
    shared_memory: str = "64Gi"
    """The size of /dev/shm of a pod."""
    volume_claim: str = ""
    """A claim that all pods mount where `runs` says; kubectl get pvc lists them."""
    secret: str = ""
    """A secret of the cluster that holds the variables which `secrets` names."""
    queue: str = ""
    """A local queue of Kueue; kubectl get localqueues lists them."""
    gang: Literal["", "kueue", "volcano"] = ""
    """What starts all pods together or none."""

    def __post_init__(self) -> None:
        if self.rdma_count < 1:
            raise UserError(f"kubernetes.rdma_count is {self.rdma_count}; it must be at least 1")
        if not QUANTITY.fullmatch(self.shared_memory):
            raise UserError(f"kubernetes.shared_memory is {self.shared_memory!r}; write a size such as 64Gi")


@dataclass(frozen=True)
class AzureML:
    """The words of an Azure ML workspace."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = STRICT
    compute: str = ""
    """The compute cluster; az ml compute list shows them."""
    experiment: str = "stagecraft"
    """Under which the job is listed in the studio."""
    environment: str = ""
    """azureml:name:version; az ml environment list shows them. Empty: the cluster's `image`."""
    datastore: str = "azureml://datastores/workspaceblobstore/paths/stagecraft"
    """Where runs and data lie; az ml datastore list shows them."""

    def __post_init__(self) -> None:
        if not self.datastore.startswith("azureml://"):
            raise UserError(f"azureml.datastore is {self.datastore!r}; write azureml://datastores/NAME/paths/FOLDER")


@dataclass(frozen=True)
class Cluster:
    """A cluster. `nodes` and `gpus_per_node` of 0 and an empty `gpu` are the recipe's, or what a machine has."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = STRICT
    kind: Kind
    """What starts a run there."""
    nodes: int = 0
    """How many nodes a run gets; 0: as many as its recipe was planned for. --nodes takes its place."""
    gpus_per_node: int = 0
    """GPUs of a node, which are its ranks; 0: the recipe's."""
    gpu: str = ""
    """Which, by a name of planner/hardware.py, or cpu; empty: the recipe's."""
    link: Link = "infiniband"
    """What leads from node to node; launch/clusters/network.py says what NCCL is told of it."""
    time_limit: str = ""
    """How long the scheduler lets a job run: [days-]hours:minutes:seconds. Before it ends the run saves."""
    runs: str = ""
    """The folder on storage that all nodes share, where runs and data lie; empty: as on this machine."""
    image: str = ""
    """The container image that nodes run, where they run one."""
    setup: tuple[str, ...] = ()
    """Lines of shell that each node runs before, such as module load cuda/13."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that ranks get; they win over those of the link."""
    secrets: tuple[str, ...] = ("WANDB_API_KEY", "HF_TOKEN")
    """Variables of your own environment that ranks get and that nobody is shown."""
    hostfile: Hostfile = field(default_factory=Hostfile)
    """Of a cluster of kind hostfile."""
    slurm: Slurm = field(default_factory=Slurm)
    """Of a cluster of kind slurm."""
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
    """Of a cluster of kind kubernetes."""
    azureml: AzureML = field(default_factory=AzureML)
    """Of a cluster of kind azureml."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.gpu and self.gpu != "cpu":
            hardware.find(self.gpu)
        seconds_of(self.time_limit)
        if self.runs and self.kind != "local" and not self.runs.startswith("/"):
            raise UserError(f"runs is {self.runs!r}; write a path from / on, which means the same on every node")
        self._check_variables()
        for name, text in _texts(self):
            if not text.isprintable():
                raise UserError(f"{name} is {text!r}, which holds the end of a line or a sign like it; take it out")
        self._check_use()

    def _check_use(self) -> None:
        """What a kind of cluster would not act upon was meant otherwise."""
        for kinds, name, remedy in (
            (("local", "hostfile"), "time_limit", "no scheduler ends a run there"),
            (("local", "hostfile"), "image", "ranks run in this project's .venv there"),
            (("hostfile",), "gpus_per_node", "the slots of the hostfile count them"),
            (("azureml",), "runs", "azureml.datastore says where runs lie"),
        ):
            if self.kind in kinds and getattr(self, name):
                raise UserError(f"{name} means nothing to a cluster of kind {self.kind}: {remedy}; take it out")
        if self.kind == "slurm" and self.image and not self.slurm.container:
            raise UserError(f"image is {self.image!r}, and nothing runs it; set slurm.container, or take it out")

    def _check_variables(self) -> None:
        for key, names in (("environment", self.environment), ("secrets", self.secrets)):
            for name in names:
                if name in Cluster.__dataclass_fields__:
                    raise UserError(f"{key} names {name!r}; write {name} above the first [section]")
                if not VARIABLE.fullmatch(name):
                    raise UserError(f"{key} names {name!r}; a variable has letters, digits and _, and no digit first")
        set_here = [(f"environment.{name}", name) for name in self.environment]
        set_here += [(f"setup: {name}", name) for line in self.setup for name in ASSIGNED.findall(line)]
        for place, name in set_here:
            if name in self.secrets or SECRET.fullmatch(name.upper()):
                raise UserError(f"{place} would show a secret; set it in your shell, and name it in secrets here")


def _texts(values: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """All texts of a description with their keys; lines of shell are their writer's own."""
    for each in fields(values):
        value, name = getattr(values, each.name), f"{prefix}{each.name}"
        if is_dataclass(value):
            yield from _texts(value, f"{name}.")
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", text) for key, text in value.items())
        elif isinstance(value, tuple) and name != "setup":
            yield from ((name, text) for text in value)


def built_in() -> dict[str, Path]:
    """The clusters that come with the project, by name."""
    return {path.stem: path for path in sorted(HERE.glob("*.toml"))}


def file_of(text: str) -> Path:
    """The file that `--cluster` means: a built-in name, or a path. Errors: `UserError` that names the nearest."""
    if not text.strip():
        raise UserError(f"--cluster is empty; there are {', '.join(built_in())}, or give a file such as mine.toml")
    path = built_in().get(text) or Path(text)
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file such as {path / 'mine.toml'}")
    if "/" in text or text.endswith(".toml"):
        raise UserError(f"{text} does not exist; give the file of a cluster, or one of {', '.join(built_in())}")
    nearest = hint(text, built_in(), otherwise=f"there are {', '.join(built_in())},")
    raise UserError(f"there is no cluster {text!r}; {nearest} or give a file such as mine.toml")


def label(path: Path) -> str:
    """What one gives to `--cluster` for a file: the name of one that comes with the project, else its path."""
    return next((name for name, file in built_in().items() if file == path), str(path))


def read(path: Path) -> Cluster:
    """The cluster of a file. Errors: `UserError` of one line that says file, key and remedy."""
    from pydantic import TypeAdapter, ValidationError

    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; write TOML, as in {HERE / 'slurm.toml'}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give another file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}; write TOML, as in {HERE / 'slurm.toml'}") from None
    _check_keys(values, Cluster, path)
    if "kind" not in values:
        raise UserError(f"{path}: kind is missing; there are {', '.join(get_args(Kind))}")
    if values["kind"] in get_args(Kind):
        for other in get_args(Kind):
            if other != values["kind"] and other in values:
                raise UserError(f"{path}: [{other}] says nothing to kind = {values['kind']!r}; take it out")
    try:
        # Strict, so that "4" and true are no numbers; of JSON, where a list may be a tuple and 01:30:00 is a text
        return TypeAdapter(Cluster).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            known = filter(None, re.findall(r"'([^']*)'", first["ctx"]["expected"]))
            message = f"{place} is {first['input']!r}; {hint(str(first['input']), known)}"
        elif first["type"] != "value_error":
            message = f"{place} is {first['input']!r}: {message[0].lower()}{message[1:]}"
        raise UserError(f"{path}: {message}") from None


def _remedy(key: str, known: list[str], prefix: str) -> str:
    """Where a key stands that is not known there, or which one is near."""
    types, top = get_type_hints(Cluster), [each.name for each in fields(Cluster)]
    if prefix and key in top:
        return f"write {key} above the first [section]"
    below = [f"{name}.{each.name}" for name in top if is_dataclass(types[name]) for each in fields(types[name])]
    if there := [name for name in below if name.partition(".")[2] == key]:
        return f"did you mean {' or '.join(there)}?"
    return hint(key, known if prefix else [*known, *below], otherwise=f"there are {', '.join(known)}")


def _check_keys(values: JsonObject, kind: Any, path: Path, prefix: str = "") -> None:
    """Errors: `UserError` for a key that is not known, with the nearest that is."""
    types, known = get_type_hints(kind), [each.name for each in fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path}: there is no key {prefix}{key}; {_remedy(key, known, prefix)}")
        if is_dataclass(types[key]) and isinstance(value, dict):
            _check_keys(value, types[key], path, f"{prefix}{key}.")
