"""Ranks that meet at rank 0's store, so that a rank that never comes, or breaks, keeps nobody waiting.

Nothing here is a collective: who is there puts its value into the store, rank 0 decides when all have, or when the time
is over, and the others read what it decided.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from planner.finding import few
from support.errors import WRONG_INPUT, CrashedError
from support.json_object import JsonObject

LOOK_SECONDS = 0.05
MARGIN_SECONDS = 10.0  # that rank 0 may take to decide


class AbsentError(CrashedError):
    """Ranks did not answer in time. `ranks` are they."""

    status = WRONG_INPUT

    def __init__(self, what: str, ranks: list[int], seconds: float) -> None:
        who = f"rank{'s' * (len(ranks) > 1)} {few(ranks)} of those that were started did not answer"
        super().__init__(f"{who} within {seconds:.0f} s: {what}; look at the machine and what its launcher printed")
        self.what, self.ranks, self.seconds = what, ranks, seconds


class Meeting:
    """The ranks of one preflight, and the store that rank 0 has."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world

    def agree(
        self, what: str, value: JsonObject, decide: Callable[[list[Any]], JsonObject], seconds: float
    ) -> JsonObject:
        """Rank 0 hears the value of every rank and decides; all get what it decided.

        `what` names it, once in a meeting. Errors: `AbsentError` on all ranks that are there where some did not come
        within `seconds`; `CrashedError` where rank 0 is gone.
        """
        key = what.replace(" ", "-")
        try:
            self.store.set(f"{key}/{self.rank}", json.dumps(value))
            self.store.add(f"{key}/count", 1)
            if self.rank == 0:
                self._tell(key, what, decide, seconds)
            self.store.wait([f"{key}/decided"], timedelta(seconds=seconds + MARGIN_SECONDS))
            decided: JsonObject = json.loads(self.store.get(f"{key}/decided"))
        except (DistStoreError, DistNetworkError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CrashedError(f"rank 0 does not answer any more ({what}): {reason}; see what it printed") from None
        if "absent" in decided:
            raise AbsentError(what, decided["absent"], seconds)
        return decided

    def _tell(self, key: str, what: str, decide: Callable[[list[Any]], JsonObject], seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.store.add(f"{key}/count", 0) < self.world:
            if time.monotonic() > until:
                missing = [rank for rank in range(self.world) if not self.store.check([f"{key}/{rank}"])]
                if missing:
                    self.store.set(f"{key}/decided", json.dumps({"absent": missing}))
                    return
            time.sleep(LOOK_SECONDS)
        values = [json.loads(self.store.get(f"{key}/{rank}")) for rank in range(self.world)]
        self.store.set(f"{key}/decided", json.dumps(decide(values)))

    def part(self, absent: int = 0) -> None:
        """Say goodbye, once rank 0 has said all that it has to say: a launcher ends all ranks with the first.

        Rank 0, who has the store, waits for the others a little, but for those that never came.
        """
        if self.rank == 0:
            self.store.set("said", "")
        else:
            with suppress(DistStoreError, DistNetworkError, RuntimeError):
                self.store.wait(["said"], timedelta(seconds=MARGIN_SECONDS))
        self.store.add("gone", 1)
        until = time.monotonic() + MARGIN_SECONDS
        while self.rank == 0 and self.store.add("gone", 0) < self.world - absent and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)


def meet(address: str, port: int, rank: int, world: int, agent: bool, seconds: float) -> Meeting:
    """Come to rank 0's store; `agent`: the launcher has it. Errors: `CrashedError` where nobody answers there."""
    try:
        store = TCPStore(
            address, port, world, rank == 0 and not agent, timedelta(seconds=seconds), wait_for_workers=False
        )
    except (DistNetworkError, DistStoreError, RuntimeError) as error:
        what = str(error).splitlines()[0]
        raise CrashedError(
            f"rank {rank} cannot reach rank 0 at {address} port {port} within {seconds:.0f} s: {what}; let the "
            "machines reach each other there (name, firewall, interface), or give another --master_port"
        ) from None
    return Meeting(PrefixStore("preflight", store), rank, world)
