"""The search's benchmark, where the operating system cannot pin it to a core."""

import json
import os

import pytest

from bench import search


def test_it_runs_where_processes_cannot_be_pinned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.setattr("sys.argv", ["search", "gpt_39b", "--json"])
    monkeypatch.setattr(search, "WANTED_LAYOUTS", 100)
    search.main()
    values = json.loads(capsys.readouterr().out)
    assert values["layouts"] >= 100 and values["clusters"] >= 1
