"""Machines that are not alike: hand-made facts of 2,240 ranks, and two real ranks that say they are two machines."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.registry import load
from run.request import Request, plan_run
from support.errors import UserError
from tests.distributed import run_ranks
from training import alike, facts
from training.alike import Skew, different, skewed, skews, unseen
from training.facts import Facts
from training.shared import leave_token, take_token, token_problem

WORLD, ROOM = 2240, 8


def host(rank: int) -> str:
    return f"node-{rank // ROOM:03d}"


def everyone(**others: dict[int, str]) -> list[Facts]:
    """The facts of all ranks, with other values on some."""
    usual = {"torch": "2.9.1", "python": "3.11.9", "CUDA driver": "570.86"}
    told = {"torch": "torch", "python": "python", "driver": "CUDA driver"}
    ranks = []
    for rank in range(WORLD):
        own = {told[name]: values[rank] for name, values in others.items() if rank in values}
        ranks.append(Facts(rank, host(rank), {**usual, **own}))
    return ranks


def test_alike_machines_have_nothing_to_say() -> None:
    assert different(everyone()) == []


def test_another_version_on_one_node_is_named() -> None:
    (found,) = different(everyone(torch=dict.fromkeys(range(16, 24), "2.8.0")))
    line = "torch is 2.8.0 on node-002 (ranks 16, 17, 18, 19 and 4 more), and 2.9.1 elsewhere; install the same "
    assert found.spoils and found.line == f"{line}everywhere, with make setup"


def test_most_ranks_are_right_even_where_rank_0_is_not() -> None:
    (found,) = different(everyone(python={0: "3.12.1"}))
    assert found.line.startswith("python is 3.12.1 on node-000 (rank 0), and 3.11.9 elsewhere")


def test_another_driver_is_a_warning_and_thousands_of_ranks_are_one_line() -> None:
    (found,) = different(everyone(driver=dict.fromkeys(range(1000), "565.1")))
    assert not found.spoils and "node-000, node-001, node-002, node-003 and 121 more" in found.line
    assert "996 more" in found.line and len(found.line) < 240


def test_a_fact_that_a_rank_lacks_is_a_difference() -> None:
    (found,) = different([Facts(0, "a", {"NCCL": "2.27"}), Facts(1, "a", {"NCCL": "2.27"}), Facts(2, "b", {})])
    assert found.line.startswith("NCCL is none on b (rank 2), and 2.27 elsewhere")


def test_the_driver_is_read_without_asking_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(facts, "DRIVER", file)
    assert facts.driver() == ""
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (a@b)\n")
    assert facts.driver() == "570.86.15"


def test_sources_are_those_of_every_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "a.py").write_text("1")
    first = facts.sources()
    (tmp_path / "launch" / "b.py").write_text("")
    second = facts.sources()
    (tmp_path / "launch" / "a.py").write_text("2")
    assert len({first, second, facts.sources()}) == 3


def test_clocks_are_bounded_by_a_barrier() -> None:
    """All are in the barrier at second 10.5 of rank 0's clock; b's is 3 s ahead, and it came late."""
    zero, late, exact = [(10.0, 11.0)], [(13.4, 14.0)], [(13.45, 13.55)]
    clocks = skews(["a", "b", "b"], [zero, late, exact])
    # b's second rank alone: between 13.45 - 11.0 and 13.55 - 10.0
    assert [(each.host, round(each.seconds, 3), round(each.error, 3)) for each in clocks] == [
        ("a", 0.0, 1.0),
        ("b", 3.0, 0.55),
    ]
    (found,) = skewed(clocks)
    assert found.line == "the clock of b is 3.00 s ahead of the others' (± 0.55 s); run chronyd or ntpd there"
    assert not found.spoils


def test_more_barriers_make_a_clock_surer() -> None:
    clocks = skews(["a", "b"], [[(0.0, 4.0), (4.0, 4.1)], [(2.0, 6.0), (6.0, 6.1)]])
    assert [round(each.error, 3) for each in clocks] == [0.1, 0.1] and round(clocks[1].seconds, 3) == 2.0


def test_a_clock_that_may_be_right_is_not_blamed() -> None:
    assert skewed([Skew("a", 0.0, 0.1), Skew("b", 3.0, 2.5), Skew("c", -0.9, 0.0)]) == []


def test_the_usual_clock_counts_and_not_rank_0_s() -> None:
    hosts = ["a", "b", "c"]
    clocks = skews(hosts, [[(0.0, 0.01)], [(100.0, 100.01)], [(100.0, 100.01)]])
    (found,) = skewed(clocks)
    assert found.line.startswith("the clock of a is 100.00 s behind the others'")


def test_a_storage_that_is_not_shared_is_named(tmp_path: Path) -> None:
    token, failed = leave_token(tmp_path)
    assert not failed and token_problem(tmp_path, token, 3, 0.0) == ""
    other = tmp_path / "other"
    other.mkdir()
    assert token_problem(other, token, 3, 0.0) == "it is another folder than rank 0's"
    assert token_problem(tmp_path / "none", token, 3, 0.0) == "it cannot be read: No such file or directory"
    take_token(tmp_path, token)
    assert list(tmp_path.iterdir()) == [other]
    (found,) = unseen(tmp_path, ["a", "b", "b"], ["", "it is another folder than rank 0's", ""])
    assert found.spoils
    assert found.line.startswith(f"{tmp_path} on b: it is another folder than rank 0's; put it on storage that all")


class Said:
    """A log that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def begin(folders: tuple[Path, Path], layout: tuple[str, ...], torch_of_b: str = "", ahead: float = 0.0) -> list[str]:
    """A rank of two that say they are machines a and b; returns what is said, or the error."""
    rank, log = torch.distributed.get_rank(), Said()
    run = plan_run(load("tiny"), Request(run_dir=str(folders[rank]), settings=layout), 2)
    mine = replace(facts.facts(), host="ab"[rank])
    if rank and torch_of_b:
        mine.alike["torch"] = torch_of_b
    now, alike.LATE_SECONDS = time.time, 0.2
    alike.facts = lambda **_: mine  # type: ignore[assignment]
    alike.time.time = lambda: now() + (ahead if rank else 0.0)  # type: ignore[assignment]
    try:
        alike.check(run, log)  # type: ignore[arg-type]
    except UserError as error:
        return [f"{error.status} {error}"]
    return log.lines


def test_two_machines_begin_a_run(tmp_path: Path) -> None:
    """The lines of both: only rank 0's log writes them."""
    tensor = ("layout.tp=2", "model.hidden_size=64", "model.num_attention_heads=4")
    (first, again) = run_ranks(2, begin, (tmp_path, tmp_path), tensor, ahead=100.0)
    assert first == again and len(first) == 2
    said = re.match(r"the clock of b is (\S+) s ahead of the others' \(± (\S+) s\); run chronyd", first[0])
    assert said and abs(float(said[1]) - 100) <= float(said[2]) + 0.02
    assert first[1].startswith("1 of 1 tensor groups lie on several hosts, such as ranks 0, 1 on a, b")
    assert list(tmp_path.iterdir()) == []


def test_two_machines_that_do_not_go_together_end_in_one_line(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    started = time.monotonic()
    told = run_ranks(2, begin, (tmp_path, other), (), torch_of_b="2.0.0")
    assert told[0] == told[1] and time.monotonic() - started < 60
    assert told[0][0].startswith("2 torch is 2.0.0 on b (rank 1), and ")
    assert told[0][0].endswith("with make setup (and 1 more: stagecraft preflight)")
    assert [file.name for file in tmp_path.iterdir()] == ["other"]
