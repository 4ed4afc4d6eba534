"""The command that prepares data, as its users run it."""

import json
from pathlib import Path

from tests.commands.running import fail, small, succeed, write_corpus


def test_two_nodes_share_the_work_and_the_last_puts_it_together(tmp_path: Path) -> None:
    corpus = small(write_corpus(tmp_path / "corpus.jsonl"))
    command = ["commands", "prepare", "tiny", *corpus, "--workers", "1", "--nodes", "2"]
    first = succeed(tmp_path, *command, "--node", "1")
    assert "node 1 of 2 did its part" in first and "1 of 1 tasks are not finished yet" in first
    assert not list(tmp_path.rglob("manifest.json"))
    last = json.loads(succeed(tmp_path, *command, "--node", "0", "--json"))
    assert last["parts"][0]["train"]["documents"] + last["parts"][0]["validation"]["documents"] > 150
    again = succeed(tmp_path, "commands", "prepare", "tiny", *corpus)
    assert "encoding" not in again and last["parts"][0]["folder"] in again


def test_bad_lines_stop_or_are_counted(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus.jsonl")
    with open(path, "a") as stream:
        stream.write("{\n{}\n")
    command = ["commands", "prepare", "tiny", *small(path), "--workers", "1"]
    assert "corpus.jsonl line 201 is not JSON" in fail(tmp_path, *command)
    out = succeed(tmp_path, *command, "--on-error", "skip")
    assert "skipped 1 times, not JSON; the first: corpus file" in out and "skipped 1 times, no text" in out


def test_the_known_corpora_are_listed(tmp_path: Path) -> None:
    out = succeed(tmp_path, "commands", "prepare", "--corpora")
    assert "shakespeare" in out and "cc-stories" in out and "GPL-2" in out
    assert "name a recipe" in fail(tmp_path, "commands", "prepare")
