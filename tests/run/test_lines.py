from pathlib import Path

import pytest

from run.feed import Feed
from run.lines import Lines
from support import files
from tests.run.happened import event, started, step, write, write_run

HEADER = [
    "gpt_tiny: 1.7M parameters, 1,024 tokens a step, steps 1 to 100",
    "engine: fp32, ZeRO stage 1, global batch 16 = micro-batch 8 x accumulation 1 x data degree 2",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def told(lines: Lines, feed: Feed) -> list[str]:
    return [line for happened in feed.new() for line in lines.of(happened)]


def test_steps_events_and_header_come_in_their_order(path: Path) -> None:
    write(path, [step(9, 11.0), step(10, 12.0), step(20, 13.0, validation_loss=7.25), step(21, 15.0, skipped=True)])
    *begins, training = started()
    write(
        path, [*begins, event("said", 9.5, line="slow: bf16"), training, event("saved", 14.0, path="x/step-00000020")]
    )
    assert told(Lines(path), Feed(path)) == [
        "slow: bf16",
        *HEADER,
        f"run: {path}",
        "step     10/100  loss 7.800  512 tokens/s",
        "step     20/100  loss 7.600  512 tokens/s  validation loss 7.2500",
        "saved x/step-00000020",
        "step     21/100  loss 7.580  512 tokens/s  skipped (loss scale 1)",
    ]


def test_above_a_panel_steps_are_told_for_what_they_bring_only(path: Path) -> None:
    write(path, [*started(), step(10, 12.0), step(20, 13.0, validation_loss=None), step(100, 14.0)])
    lines = told(Lines(path, steps=False), Feed(path))[3:]
    assert lines == ["step     20/100  loss 7.600  512 tokens/s  validation loss nan"]


def test_a_step_that_is_found_before_the_event_training_waits(path: Path) -> None:
    feed, lines = Feed(path), Lines(path)
    write(path, [*started()[:-1], step(10, 12.0)])
    assert told(lines, feed) == []
    write(path, started()[-1:])
    assert told(lines, feed)[2:] == [f"run: {path}", "step     10/100  loss 7.800  512 tokens/s"]


def test_a_resumed_run_tells_new_steps_only(path: Path) -> None:
    write(path, [*started(), step(10, 12.0), step(20, 13.0)])
    feed, lines = Feed(path), Lines(path)
    feed.new()  # what a parent leaves out
    kept = (path / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    files.write(path / "metrics.jsonl", "".join(kept))
    write(path, [event("start", 100.0), event("training", 110.0, step=10, last_step=100), step(20, 111.0)])
    assert told(lines, feed) == [
        HEADER[0].replace("steps 1", "steps 11"),
        HEADER[1],
        f"run: {path}",
        "step     20/100  loss 7.600  512 tokens/s",
    ]


def test_a_fault_names_its_rank_and_what_that_printed(path: Path) -> None:
    fault = event("fault", 13.0, rank=1, code=1, reason="rank 1 of 2 ended with status 1", log=["a word"])
    write(path, [*started(), step(10, 12.0), fault, event("restart", 14.0, failures=1, waited=1, checkpoint="step-8")])
    feed, shown = Feed(path), Lines(path)
    lines = told(shown, feed)
    files.write(path / "metrics.jsonl", "")  # a start forgets what it takes again before it says that it trains
    write(path, [event("training", 20.0, step=8, last_step=100), step(20, 21.0)])
    lines += told(shown, feed)
    assert lines[4:7] == [
        "fault: rank 1 of 2 ended with status 1",
        "rank 1: a word",
        "launching the ranks again from step-8, after failure 1",
    ]
    assert lines[7].endswith("steps 9 to 100") and lines[8:-1] == lines[1:3] and "20/100" in lines[-1]
    write(path, [event("fault", 30.0, rank=0, code=1, reason="rank 0 broke", log=["shown already"])])
    assert told(Lines(path), Feed(path))[-1] == "fault: rank 0 broke"


def test_a_rollback_says_what_is_given_up(path: Path) -> None:
    samples = {"first_sample": 24, "last_sample": 111}
    write(path, [*started(), event("rollback", 11.0, from_step=14, to_step=3, **samples)])
    assert told(Lines(path), Feed(path))[3:] == [
        "no step is taken: back to the weights of step 3, past samples 24 to 111"
    ]


def test_a_slow_rank_is_named_with_its_machine_and_what_it_is_slow_at(path: Path) -> None:
    slow = {"rank": 3, "host": "worker-2", "what": "computing", "times": 1.84, "since": 0.0}
    write(path, [event("slow", 20.0, **slow), event("slow", 30.0, **slow | {"times": None, "host": None})])
    write(path, [event("slow", 40.0, **slow | {"what": what}) for what in ("waiting for data", "standing still")])
    said = [line.rpartition(", since ")[0] for line in told(Lines(path), Feed(path))]
    assert said == [
        "slow: rank 3 on worker-2 takes 1.8 times the others' time to compute",
        "as fast as the others again: rank 3, computing",
        "slow: rank 3 on worker-2 waits for its data, which makes steps 1.8 times as long",
        "slow: rank 3 on worker-2 stands still over and over: its time is 1.8 times as long",
    ]
