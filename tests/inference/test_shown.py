"""Texts of a batch on a terminal: the first grows, those behind it wait."""

import pytest

from inference.sampling import Sampling
from inference.shown import Shown


def test_the_first_text_grows_and_the_others_wait(capsys: pytest.CaptureFixture[str]) -> None:
    shown, out = Shown(Sampling(samples=3, seed=5)), ""
    steps = [
        ("grown", 0, "the", "--- sample 1 (seed 5)\nthe"), ("grown", 0, "the c\ufffd", " c"),
        ("grown", 1, "the r", ""), ("done", 2, "the x", ""), ("grown", 0, "the cä", "ä"), ("done", 0, "the cät", "t\n"),
        ("grown", 1, "the rat", "--- sample 2 (seed 6)\nthe rat"),
        ("done", 1, "the rats", "s\n--- sample 3 (seed 7)\nthe x\n"),
    ]  # fmt: skip
    for step, number, text, new in steps:
        getattr(shown, step)(number, text)
        out = capsys.readouterr().out
        assert out == new, (step, number, text)


def test_what_may_begin_a_stop_string_is_held_back(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown(Sampling(stop=("Exeunt", "x")))
    shown.grown(0, "KING Exeu")
    assert capsys.readouterr().out == "KING"
    shown.done(0, "KING ")
    assert capsys.readouterr().out == " \n"
