import pytest

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
