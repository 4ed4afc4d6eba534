"""Start a module under the real `deepspeed` launcher, on this machine or over a hostfile, and see it through."""

import codecs
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from recipes.registry import ROOT
from support.errors import UserError

CPU_PROCESSES = 2  # without a GPU: the smallest world in which data parallelism is real
# What a shell acts upon: in an argument, bare or in double quotes; in a variable's value, in double quotes.
ACTIVE_IN_ARGUMENTS, ACTIVE_IN_VALUES = re.compile(r"[$`\"'\\;&|<>(){}\n]"), re.compile(r"[$`\"\\]")
SLOTS = re.compile(r"[1-9][0-9]{0,3}")  # of a host: no machine has ten thousand
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SENT_ALONG = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # variables, by their beginnings
CHOSEN = "CUDA_VISIBLE_DEVICES"
COUNT_SECONDS = 120.0  # that a new process may take to count them
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")  # one folder for each board, visible or not
GPU_DEVICES = ("nvidia*", "nvmap", "dxg", "kfd")  # in /dev, one of them at least: NVIDIA's, Tegra's, WSL's, AMD's


def count_gpus() -> int:
    """GPUs of this machine, 0 where there are none."""
    if not any(any(Path("/dev").glob(name)) for name in GPU_DEVICES):
        return 0  # two seconds sooner than torch says so
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def world_size(hostfile: str | None, processes: int | None, most: int = 2**31) -> int:
    """How many ranks a launch will have: the hostfile's slots, else `processes`, else the GPUs up to `most`, else two.

    Errors: `UserError` where the hostfile cannot be read or `processes` is more than there are GPUs.
    """
    if hostfile:
        if processes:
            raise UserError("--processes and --hostfile exclude each other: the hostfile's slots count the processes")
        return sum(read_hostfile(Path(hostfile)).values())
    gpus = len(visible_gpus())
    if processes is None:
        return min(gpus, most) or CPU_PROCESSES
    if processes < 1:
        raise UserError(f"--processes is {processes}; it must be at least 1")
    if gpus and processes > gpus:
        raise UserError(f"--processes is {processes} but {gpus} GPUs are visible here; give at most {gpus}")
    return processes


def visible_gpus() -> list[str]:
    """The indices of the GPUs that a run here may use: all, or those that `CUDA_VISIBLE_DEVICES` lists.

    A machine without GPUs has none, whatever the variable says. Errors: `UserError` where the variable names a GPU by
    its UUID or as a MIG slice (the deepspeed launcher 0.19.8 would drop the variable and take the first board), or one
    that this machine does not have.
    """
    count = count_gpus()
    chosen = [name.strip() for name in os.environ.get(CHOSEN, "").split(",") if name.strip()]
    if not chosen or not (count or (DRIVER_GPUS.is_dir() and any(DRIVER_GPUS.iterdir()))):
        return [str(index) for index in range(count)]
    hidden = chosen == ["-1"]
    if not hidden and not all(name.isdigit() for name in chosen):
        name = next(name for name in chosen if not name.isdigit())
        raise UserError(
            f"{CHOSEN} names {name}, and the deepspeed launcher knows GPUs by their index only; set {CHOSEN} to "
            "indices as nvidia-smi -L lists them, with CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    if not hidden and len(chosen) != count:
        raise UserError(
            f"{CHOSEN} is {','.join(chosen)}, of which this machine has {count}; list GPUs that nvidia-smi -L shows, "
            "each once"
        )
    return [] if hidden else chosen


def gpus_left() -> int | None:
    """How many of the GPUs that a run here may use a process finds that begins now; None where there never were any.

    This process remembers the boards that it has counted once. One that fell off the bus is missing to a new process.
    Where that cannot say, all are taken to be there.
    """
    if not (known := len(visible_gpus())):
        return None
    code = "from launch.local import count_gpus; print(count_gpus())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=COUNT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return known
    return min(int(done.stdout), known) if done.stdout.strip().isdigit() else known


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in DeepSpeed's form: `worker-1 slots=8`, a line each; `#` starts a comment.

    Errors: `UserError` with file and line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"hostfile {path} cannot be read: {error.strerror}") from None
    hosts: dict[str, int] = {}
    for number, read in enumerate(lines, start=1):
        if read.startswith(codecs.BOM_UTF8):
            raise UserError(f"hostfile {path} begins with a byte order mark; save it as UTF-8 without one")
        try:
            line = read.decode()
        except UnicodeDecodeError:
            raise UserError(f"hostfile {path} line {number}: {read!r} is not UTF-8; save the file as UTF-8") from None
        words = line.split("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 and words[1].startswith("slots=") else ""
        if not SLOTS.fullmatch(slots):
            raise UserError(f"hostfile {path} line {number}: {line!r}; write it as: worker-1 slots=8")
        if not HOST.fullmatch(words[0]):  # with a dash before it ssh takes it for an option, and may run it
            raise UserError(f"hostfile {path} line {number}: {words[0]!r} is no name of a host; {_host(words[0])}")
        if words[0] in hosts:
            raise UserError(f"hostfile {path} line {number}: host {words[0]} stands twice; remove one")
        hosts[words[0]] = int(slots)
    if not hosts:
        raise UserError(f"hostfile {path} names no host; write a line such as: worker-1 slots=8")
    return hosts


def _host(word: str) -> str:
    """What to write instead of what is no name of a host."""
    name, _, port = word.rpartition(":")
    if HOST.fullmatch(name) and port.isdigit():
        return f"write {name}, and its port into ~/.ssh/config (Host {name}, Port {port})"
    if word.count(":") > 1:
        return "give the IPv6 address a name, in /etc/hosts or ~/.ssh/config (Host, HostName), and write that"
    return "write letters, digits, . - _"


def deepspeed_command(module: str, arguments: list[str], processes: int, hosts: list[str] | None) -> list[str]:
    """The `deepspeed` command line for a module: on this machine, or where the flags `hosts` say."""
    if hosts:
        where = hosts
    else:
        # With --num_gpus the launcher forgets which devices the user chose (DeepSpeed 0.19.8, launcher/runner.py:451).
        gpus = visible_gpus()
        local = ["--include", f"localhost:{','.join(gpus[:processes])}"] if gpus else ["--num_gpus", str(processes)]
        # Without --hostfile the launcher reads /job/hostfile where there is one. It takes no device for a hostfile.
        where = ["--hostfile", os.devnull, *local, "--master_port", str(free_port())]
    launcher = [sys.executable, "-m", "launch.runner", "--log_level", "critical"]
    return [*launcher, *where, "--no_local_rank", "--module", module, *arguments]


def check_remote(arguments: list[str]) -> None:
    """Refuse what the shells of other machines would change or run, such as `$(command)` or a password with a `$`.

    DeepSpeed 0.19.8 puts arguments and variables into double quotes, or into none. Errors: `UserError` that names the
    argument, the variable, or the line of `.deepspeed_env`.
    """
    for argument in arguments:
        if found := ACTIVE_IN_ARGUMENTS.search(argument):
            raise UserError(
                f"{argument} holds {found[0]!r}, which a shell on the other machines would act upon; take it out"
            )
    values = {f"${name}": value for name, value in os.environ.items() if name.startswith(SENT_ALONG)}
    for file in {folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env") for folder in (Path.home(), Path.cwd())}:
        lines = file.read_text().splitlines() if file.is_file() else []
        values |= {f"{file} line {number}": line for number, line in enumerate(lines, start=1)}
    for place, value in values.items():
        if found := ACTIVE_IN_VALUES.search(value):
            raise UserError(
                f"{place} holds {found[0]!r}, which a shell on the other machines would act upon; take it out, or "
                "set the variable on each machine"
            )


def environment(processes: int) -> dict[str, str]:
    """The environment of this machine's ranks: they share the cores, and without GPUs DeepSpeed takes the CPU.

    They find this project whatever the working directory is, and nothing that lies there under the same name.
    """
    result = dict(os.environ)
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), result.get("PYTHONPATH"))))
    result["PYTHONSAFEPATH"] = "1"
    if count_gpus() == 0:
        result.setdefault("DS_ACCELERATOR", "cpu")
        result.pop(CHOSEN, None)  # on a CPU the launcher counts its entries as processes
    result.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return result


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
