"""Copies of a model that write their own prompts: which rank is whose, and how finished rows reach the first rank.

Rows go through a store of torch's and not through a collective: no copy waits for another one, however long its texts
are, and hosts need no storage in common.
"""

import json
import os
import time
from typing import TYPE_CHECKING

from inference.ranks import Loading, leads, told_by_first
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOK_SECONDS = 1.0  # between two looks at what has come, while the first copy writes itself
WAIT_SECONDS = 0.05  # the same, when it has nothing left to write


class Replica:
    """The copy of this rank: its number of `count`, and whether this rank `speaks` for it. Collective.

    The ranks are numbered as `model/layout.py` says, so the first stage of copy n begins with rank n x tensor ranks.
    """

    def __init__(self, loading: Loading) -> None:
        rank, self.count = int(os.environ.get("RANK", "0")), loading.replicas
        self.number = rank // loading.tensor % self.count
        self.speaks = rank == self.number * loading.tensor
        self.post = Post(loading) if self.count > 1 else None

    def of(self, rows: list[int]) -> list[int]:
        """The rows that this copy writes: every n-th, so that long prompts that stand together are shared."""
        return rows[self.number :: self.count]


class Post:
    """What the ranks that speak for their copies send, and what the first rank takes. Collective.

    Each sends one message after the other: rows, and in the end `done` or an `error`.
    """

    def __init__(self, loading: Loading) -> None:
        self.sent = 0
        self.taken = dict.fromkeys(range(1, loading.replicas), 0)  # of the copies that go on
        self.looked_at = time.monotonic()
        first = _store(0) if leads() else None
        port = told_by_first(loading.ranks, lambda: first.port if first else 0)
        self.store = first or _store(port)

    def send(self, number: int, message: JsonObject) -> None:
        """Send what copy `number` has to say."""
        self.store.set(f"{number}/{self.sent}", json.dumps(message))
        self.sent += 1

    def look(self) -> list[JsonObject]:
        """The rows that have come, if the last look was a while ago. Errors: `UserError` that a copy met."""
        if time.monotonic() - self.looked_at < LOOK_SECONDS:
            return []
        return self.come()

    def come(self) -> list[JsonObject]:
        """The rows that have come. Errors: `UserError` that a copy met."""
        found = []
        for number in list(self.taken):
            while number in self.taken and self.store.check([key := f"{number}/{self.taken[number]}"]):
                message = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self.taken[number] += 1
                if "error" in message:
                    raise UserError(message["error"])
                if "done" in message:
                    del self.taken[number]
                else:
                    found.append(message)
        self.looked_at = time.monotonic()
        return found

    @property
    def waits(self) -> bool:
        """Whether a copy has more to send; then it lets a moment go by."""
        if self.taken:
            time.sleep(WAIT_SECONDS)
        return bool(self.taken)


def _store(port: int) -> "TCPStore":
    """The store that the first rank holds, which begins it with port 0."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    return TCPStore(address, port, is_master=port == 0, wait_for_workers=False)
