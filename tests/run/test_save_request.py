"""A save that is asked for: of a run that trains, and of none else."""

import os
from pathlib import Path

import pytest

from run import save_request
from support.errors import UserError
from support.files import locked


def test_only_a_run_that_trains_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not train here"):
        save_request.ask(tmp_path)
    assert save_request.asked(tmp_path) is None
    with locked(tmp_path / ".lock"):
        save_request.ask(tmp_path)
    first = save_request.asked(tmp_path)
    assert first is not None
    os.utime(tmp_path / save_request.FILE, ns=(first + 1, first + 1))  # somebody asks again
    save_request.answer(tmp_path, first)
    save_request.answer(tmp_path, None)
    assert save_request.asked(tmp_path) == first + 1
    save_request.answer(tmp_path, first + 1)
    save_request.answer(tmp_path, first + 1)
    assert save_request.asked(tmp_path) is None
