"""A save that is asked for: of a run that trains, and of none else."""

from pathlib import Path

import pytest

from run import save_request
from support.errors import UserError
from support.files import locked


def test_only_a_run_that_trains_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not train here"):
        save_request.ask(tmp_path)
    assert not save_request.is_asked(tmp_path)
    with locked(tmp_path / ".lock"):
        save_request.ask(tmp_path)
    assert save_request.is_asked(tmp_path)
    save_request.answer(tmp_path)
    save_request.answer(tmp_path)
    assert not save_request.is_asked(tmp_path)
