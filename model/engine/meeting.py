"""How ranks meet: by which interface, and whether those that met are of one launch."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

import torch

from support.errors import CrashedError

# Launchers that start each rank themselves, by a variable that they set: DeepSpeed's and torchrun. Then the parent of
# a rank is the launcher. Others may put a shell of its own before each rank.
PARENT_LAUNCHES = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")


INTERFACE = "GLOO_SOCKET_IFNAME"
ALONE = ("", "localhost", "127.0.0.1", "::1")  # MASTER_ADDR where all ranks are on one host
ELSEWHERE = "192.0.2.1"  # an address that is nobody's: the way to it is the way out


def choose_interface() -> None:
    """Have gloo take the interface by which this host reaches the first one, where nobody chose another.

    By itself gloo takes the address that the name of its host stands for. On the host itself that may be 127.0.1.1,
    which no other host reaches; then the interface is taken that leads out.
    """
    first = os.environ.get("MASTER_ADDR", "")
    if first in ALONE or INTERFACE in os.environ:
        return
    for other in (first, ELSEWHERE):
        address = own_address(other)
        if address and not ipaddress.ip_address(address).is_loopback and (name := interface_of(address)):
            os.environ[INTERFACE] = name
            return


def own_address(other: str) -> str | None:
    """The address of this host from which another one is reached; None where there is no way."""
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(other, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # asks the kernel for its route; nothing is sent
            return str(probe.getsockname()[0])
    return None


def interface_of(address: str) -> str | None:
    """The name of the interface of this host that has an address."""
    import psutil

    each = psutil.net_if_addrs().items()
    return next((name for name, has in each if address in [entry.address.partition("%")[0] for entry in has]), None)


def check_one_launch() -> None:
    """Compare which launcher started each rank. Collective. Errors: `CrashedError` where two launches met.

    Two launchers on a host have the same port where nobody gives them one, and the ranks of one may join the other's.
    """
    known = any(name in os.environ for name in PARENT_LAUNCHES)
    told: list[tuple[str, int | None]] = [("", None)] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (socket.gethostname(), os.getppid() if known else None))
    if found := two_launches(told):
        raise CrashedError(
            f"ranks of two launches met at port {os.environ.get('MASTER_PORT')}: {found}; give one of the launchers "
            "another --master_port"
        )


def two_launches(told: Sequence[tuple[str, int | None]]) -> str | None:
    """The launchers in words, where ranks of one host have different ones. `told` is host and launcher of each rank."""
    first: dict[str, tuple[int, int]] = {}
    for rank, (host, launcher) in enumerate(told):
        if launcher is not None:
            before, other = first.setdefault(host, (rank, launcher))
            if other != launcher:
                return f"on {host} process {other} started rank {before}, and process {launcher} rank {rank}"
    return None
