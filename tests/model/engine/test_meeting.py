import os

import pytest

from model.engine import meeting
from model.engine.meeting import two_launches


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([("a", 7), ("a", 7)], None),
        ([("a", 7), ("a", 7), ("b", 9), ("b", 9)], None),  # a launcher a host
        ([("a", None), ("a", None)], None),  # each rank in a shell of its own
        ([("a", 7), ("a", 8)], "on a process 7 started rank 0, and process 8 rank 1"),
        ([("a", 7), ("b", 9), ("a", 7), ("b", 8)], "on b process 9 started rank 1, and process 8 rank 3"),
    ],
)
def test_ranks_of_a_host_have_one_launcher(told: list[tuple[str, int | None]], found: str | None) -> None:
    assert two_launches(told) == found


@pytest.mark.parametrize(
    ("ways", "chosen"),
    [
        ({"worker-1": "10.0.0.2"}, "ib0"),
        ({"worker-1": "127.0.1.1", meeting.ELSEWHERE: "10.0.0.1"}, "eth0"),  # on worker-1, as Debian's installer has it
        ({"worker-1": "127.0.1.1"}, None),
        ({}, None),
    ],
)
def test_gloo_gets_the_interface_that_leads_to_the_first_host(
    ways: dict[str, str], chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"MASTER_ADDR": "worker-1"})
    monkeypatch.setattr(meeting, "own_address", ways.get)
    monkeypatch.setattr(meeting, "interface_of", {"10.0.0.1": "eth0", "10.0.0.2": "ib0"}.get)
    meeting.choose_interface()
    assert os.environ.get(meeting.INTERFACE) == chosen


@pytest.mark.parametrize("env", [{}, {"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "a", meeting.INTERFACE: "ib1"}])
def test_nothing_is_chosen_for_one_host_or_over_its_user(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(env))
    monkeypatch.setattr(meeting, "own_address", lambda other: "10.0.0.1")
    meeting.choose_interface()
    assert os.environ == env


def test_this_machine_has_a_loopback() -> None:
    assert meeting.own_address("127.0.0.1") == "127.0.0.1" and meeting.interface_of("127.0.0.1") == "lo"
    assert meeting.own_address("no-such-host.invalid") is None and meeting.interface_of("192.0.2.1") is None
