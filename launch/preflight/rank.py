"""One rank of a preflight: it tells what it knows, and rank 0 compares. No rank waits for another one for long."""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from launch.preflight.asked import Asked, Limits, Values
from launch.preflight.judge import Judge
from launch.preflight.meeting import AbsentError, Meeting, meet
from launch.preflight.node import Storage, storage, this_node
from launch.preflight.told import Told
from launch.preflight.traffic import groups_of, measure
from support.errors import CRASHED, DONE, WRONG_INPUT, UserError
from support.json_object import JsonObject
from training import facts
from training.alike import read_clock
from training.shared import LATE_SECONDS, take_token, token_problem

LIMITS = Limits()
FAILURES = (RuntimeError, OSError)  # what a collective raises that does not come to its end


def be_rank(asked: Asked, say: Callable[[Values], None], limits: Limits = LIMITS) -> int:
    """Be the rank that the environment describes; rank 0 says what was found. Returns the exit status.

    Errors: `CrashedError` where rank 0 cannot be reached.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    watchdog = threading.Timer(limits.total, _end, (rank, limits.total))
    watchdog.daemon = True
    watchdog.start()
    judge = Judge(asked, world, f"{address} port {port}")
    meeting = meet(address, port, rank, world, agent, limits.meet)
    status = WRONG_INPUT
    try:
        _examine(asked, meeting, judge, limits)
        if meeting.agree("verdict", {}, lambda _: {"ok": judge.ok}, limits.answer)["ok"]:
            status = DONE
    except AbsentError as error:
        judge.absent(error)
    if rank == 0:
        say(judge.values())
    meeting.part(len(judge.missing))
    watchdog.cancel()
    return status


def _end(rank: int, seconds: float) -> NoReturn:
    """End where a library waits for ever all the same."""
    print(f"error: rank {rank} hangs in its preflight after {seconds:.0f} s; look at its machine", file=sys.stderr)
    sys.stderr.flush()
    os._exit(CRASHED)


def _examine(asked: Asked, meeting: Meeting, judge: Judge, limits: Limits) -> None:
    """All stages, one after the other. Errors: `AbsentError`, `CrashedError`."""
    rank, leads = meeting.rank, os.environ.get("LOCAL_RANK", "0") == "0"
    told = _told(asked, meeting.world, leads)
    go = meeting.agree("start", asdict(told), judge.facts, limits.meet)
    found: Storage | None = None
    if leads:
        problem = go["failed"] or token_problem(asked.folder, go["token"], rank, LATE_SECONDS)
        found = storage(asked.folder, problem, go["size"], f".speed-{go['token']}-{rank}", go["data"])
    meeting.agree("storage", {"found": found and asdict(found)}, judge.storage, limits.answer)
    if rank == 0:
        take_token(asked.folder, go["token"])
    if go["collectives"] and _stage(meeting, judge, "process group", lambda: _start_group(meeting, limits), limits):
        _measure(asked, meeting, judge, go["hosts"], limits)


def _told(asked: Asked, world: int, leads: bool) -> Told:
    """What this rank knows before it has spoken with any other."""
    mine, problem = facts.facts(), ""
    try:
        run = asked.run(world)
        settings = {"recipe": facts.hashed(asdict(run.recipe)), "DeepSpeed JSON": facts.hashed(run.engine.json)}
        mine = facts.Facts(mine.rank, mine.host, {**mine.alike, **settings})
    except UserError as error:
        problem = str(error)
    return Told(mine, this_node(mine.host, os.environ["MASTER_ADDR"]) if leads else None, problem)


def _start_group(meeting: Meeting, limits: Limits) -> JsonObject:
    cuda = torch.cuda.is_available()
    if cuda:
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # so that a wait has an end
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = dist.PrefixStore("group", meeting.store)  # type: ignore[attr-defined]
    limit = timedelta(seconds=limits.answer)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.world, timeout=limit)
    return {}


def _measure(asked: Asked, meeting: Meeting, judge: Judge, hosts: list[str], limits: Limits) -> None:
    """Clocks, and the speed of each axis."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _stage(meeting, judge, "clocks", lambda: {"clock": read_clock()}, limits):
        return
    for axis, groups in groups_of(asked.run(meeting.world).recipe.layout, hosts).items():

        def timed(axis: str = axis, groups: list[list[int]] = groups) -> JsonObject:
            timing = measure(axis, groups, device, limits.answer)
            return {"timing": timing and asdict(timing)}

        if not _stage(meeting, judge, f"{axis} groups", timed, limits):
            return
    dist.destroy_process_group()  # one that has failed may wait for ever in it
    if meeting.rank == 0:
        judge.traffic()


def _stage(meeting: Meeting, judge: Judge, name: str, does: Callable[[], JsonObject], limits: Limits) -> bool:
    """Do something together once all are ready for it, and tell how it went; whether it went well everywhere."""
    meeting.agree(f"before {name}", {}, lambda _: {}, limits.answer)
    try:
        value = does()
    except FAILURES as error:
        value = {"problem": (str(error).splitlines() or [type(error).__name__])[0]}
    # A rank may be told only after its own time is over that another one has failed.
    return bool(meeting.agree(name, value, lambda all_: judge.stage(name, all_), 2 * limits.answer)["ok"])
