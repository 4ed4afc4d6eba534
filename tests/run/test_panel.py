import io
from pathlib import Path

import pytest
from rich.console import Console

from run.feed import Feed
from run.panel import BLOCKS, RunPanel, count, duration, sparkline
from run.state import State
from support.json_object import JsonObject
from tests.run.happened import BEGAN, event, started, step, write, write_run

WIDTHS = (60, 100, 200)


def drawn(path: Path, after: float, width: int, encoding: str = "utf-8") -> str:
    """The panel so many seconds after the start. No line of it is wider than the terminal."""
    state = State(path, BEGAN)
    for happened in Feed(path).new():
        state.take(happened)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, record=True)
    console.print(RunPanel(state, lambda: BEGAN + after))
    lines = console.export_text().splitlines()
    assert {len(line) for line in lines} == {width} and len(lines) < 40
    return "\n".join(lines)


def trained(until: int, **last: object) -> list[JsonObject]:
    """A start and its steps; the last one has what is given."""
    steps = [step(n, 10.0 + 2 * n) for n in range(1, until)]
    return [*started(), *steps, step(until, 10.0 + 2 * until, **last)]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_start_from_its_first_second(width: int, tmp_path: Path) -> None:
    assert "checks 0.5 s" in drawn(tmp_path / "nowhere", 0.5, width)
    write(write_run(tmp_path), started()[:3])
    text = drawn(tmp_path, 15.0, width)
    assert "starting" in text and "data 1.0 s  imports 14 s" in text and "none yet" in text and "loss" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_in_its_course(width: int, tmp_path: Path) -> None:
    write(write_run(tmp_path), trained(30, validation_loss=7.5, samples_by_part=[480]))
    text = drawn(tmp_path, 71.0, width)
    for words in (
        *("training", "load 1.0 s", "30/100", "30.0%", "30,720 of 1.64 M", "7.400", "7.5000 at 30, best 7.5000 at 30"),
        *("0.003  norm 1.25  scale 1", "512 tokens/s  MFU -", "1.00  2.00 GB", "1 min 11 s so far", "0.48 corpus-0"),
        *("after step 50, in 40 s", BLOCKS[-1], BLOCKS[0]),
    ):
        assert words in text, words


def test_without_validation_and_with_losses_that_are_not_finite(tmp_path: Path) -> None:
    write(write_run(tmp_path), trained(10, loss=None, grad_norm=None, skipped=True))
    text = drawn(tmp_path, 31.0, 100)
    assert "loss       nan" in text and "validation -" in text and "norm -" in text and "skipped 1" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("status", "word"), [(0, "finished"), (75, "stopped"), (3, "weights lost"), (1, "crashed")])
def test_an_end(status: int, word: str, width: int, tmp_path: Path) -> None:
    write(write_run(tmp_path), trained(100, validation_loss=6.0))
    final = {"step": 100, "time": BEGAN + 215, "final_validation_loss": 6.25, "evaluate_seconds": 1.0}
    write(tmp_path, [final, event("saved", 211.0, path="x/step-00000100"), event("end", 216.0, status=status)])
    text = drawn(tmp_path, 999.0, width)
    assert word in text and "100.0%" in text and "final      6.2500" in text and "3 min 36 s in all" in text
    assert "saved step-00000100" in text and "left" not in text and "so far" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_many_ranks_and_parts(width: int, tmp_path: Path) -> None:
    memory = [60 * 10**9 + rank * 10**6 for rank in range(2240)]
    write(write_run(tmp_path, ranks=2240, parts=15), trained(30, memory_bytes=memory, mfu=0.4312))
    text = drawn(tmp_path, 71.0, width)
    assert "60.00 to 62.24 GB (rank 2,239 of 2,240)" in text and "MFU 43.1%" in text
    assert all(f"0.03 corpus-{part}" in text for part in range(15))


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    write(write_run(tmp_path), trained(30))
    assert drawn(tmp_path, 71.0, 100, encoding="ascii").isascii()


def test_words_that_look_like_markup_are_words(tmp_path: Path) -> None:
    write(write_run(tmp_path / "[red]"), [*trained(3), event("note", 20.0, text="[bold]mine[/]")])
    text = drawn(tmp_path / "[red]", 21.0, 200)
    assert "[red]" in text and "note: [bold]mine[/]" in text


def test_a_sparkline_is_as_wide_as_there_is_room_for() -> None:
    assert sparkline([3.0, 2.0, 1.0], 10, "_-^") == "^-_"
    assert sparkline([4.0, 2.0, 2.0, 0.0], 2, "_-^") == "^_"  # means of two
    assert sparkline([1.0, None, 1.0], 3, "_-^") == "_!_"
    assert sparkline([], 9, "_-^") == "" and sparkline([None], 9, "_-^") == "!"


def test_numbers_as_a_person_says_them() -> None:
    said = {0.04: "0.0 s", 59.6: "1 min 0 s", 61: "1 min 1 s", 3_600: "1 h 0 min", 200_000: "2 d 7 h"}
    assert {seconds: duration(seconds) for seconds in said} == said
    assert [count(n) for n in (999_999, 1_640_000, 2.7e11, 1e12)] == ["999,999", "1.64 M", "270.00 B", "1.00 T"]


@pytest.mark.parametrize("width", WIDTHS)
def test_slow_ranks_stand_there_while_they_are_slow(width: int, tmp_path: Path) -> None:
    slow = {"host": "worker-2", "what": "computing", "times": 1.84, "since": 0.0}
    write(write_run(tmp_path), [*trained(30), *(event("slow", 70.0, rank=rank, **slow) for rank in (3, 4))])
    write(tmp_path, [event("saved", 71.0, path="x/step-00000030", step=30, seconds=1.0)])
    text = " ".join(drawn(tmp_path, 72.0, width).replace("│", "").split())
    assert "slow rank 3 on worker-2 takes 1.8 times the others' time to compute, since" in text and "and 1 more" in text
    write(tmp_path, [event("slow", 80.0, rank=rank, **slow | {"times": None}) for rank in (3, 4)])
    assert "worker-2" not in drawn(tmp_path, 200.0, width).replace(
        "as fast as the others again: rank 4 on worker-2", ""
    )
