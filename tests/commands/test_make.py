"""What is given to make reaches the command letter by letter."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.registry import ROOT, load, names, short_name

# Acted upon by make, by the shell, or by both; the shell's would write a file.
TEXT = "a  \"b\" 'c' $HOME $5 $$ ${x $(shell touch bad) `touch bad` $(touch bad) \\n # ; & * % = é"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose Python prints its arguments."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    (tmp_path / ".up-to-date").touch()
    return tmp_path


def arguments(venv: Path, *line: str) -> list[str]:
    """What a target gives to `python -m commands`."""
    command = ["make", "--no-print-directory", "-C", str(ROOT), f"VENV={venv}", *line]
    done = subprocess.run(command, cwd=venv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *rest = json.loads(done.stdout.splitlines()[-1])
    assert (first, second) == ("-m", "commands") and not (ROOT / "bad").exists()
    return rest


@pytest.mark.parametrize(("line", "wanted"), [
    (["generate", f"PROMPT={TEXT}", f"RUN={TEXT}"], ["generate", "--run", TEXT, "--prompt", TEXT]),
    (["generate", "PROMPT=two\nlines"], ["generate", "--prompt", "two\nlines"]), (["generate"], ["generate"]),
    (["look", f"PROMPT={TEXT}", f"RUN={TEXT}"], ["look", "--run", TEXT, "--prompt", TEXT]),
    (["tiny", f"DS={TEXT}", f"HOSTFILE={TEXT}", "ARGS=--set a.b=1 'c.d=2 3'"],
     ["pretrain", "tiny", "--deepspeed_config", TEXT, "--hostfile", TEXT, "--set", "a.b=1", "c.d=2 3"]),
    (["tiny", f"CLUSTER={TEXT}", f"NODES={TEXT}", "DRY_RUN=1"],
     ["pretrain", "tiny", "--cluster", TEXT, "--nodes", TEXT, "--dry-run"]),
    (["data-tiny", f"CLUSTER={TEXT}", "NODES=2"], ["prepare", "tiny", "--cluster", TEXT, "--nodes", "2"]),
    (["clusters", f"CLUSTER={TEXT}"], ["clusters", TEXT]), (["stop", f"RUN={TEXT}"], ["stop", "--run", TEXT]),
    (["plan-1.3b", f"DS={TEXT}"], ["plan", "1.3b", "--deepspeed_config", TEXT]),
    (["clean-corpus", f"CORPUS={TEXT}", f"OUT={TEXT}"], ["clean", TEXT, "--out", TEXT]),
    (["inspect", f"DATA={TEXT}"], ["inspect", TEXT]), (["evaluate", f"RUN={TEXT}"], ["evaluate", "--run", TEXT]),
    (["chat", f"RUN={TEXT}", "ARGS=--system 'a b'"], ["chat", "--run", TEXT, "--system", "a b"]),
    (["serve", f"RUN={TEXT}"], ["serve", "--run", TEXT]),
    (["new-recipe", f"NAME={TEXT}", "FROM=345m"], ["new-recipe", TEXT, "--from", "345m"]),
    (["diff", "A=345m", f"B={TEXT}"], ["diff", "345m", TEXT]),
], ids=lambda value: value[0])  # fmt: skip
def test_a_text_is_acted_upon_by_nobody(line: list[str], wanted: list[str], venv: Path) -> None:
    assert arguments(venv, *line) == wanted


def test_a_text_may_stand_in_the_environment(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT", TEXT)
    assert arguments(venv, "generate") == ["generate", "--prompt", TEXT]
    monkeypatch.setenv("NAME", "the-host's")
    monkeypatch.setenv("NODES", "the-scheduler's")
    assert arguments(venv, "tiny") == ["pretrain", "tiny"]
    assert arguments(venv, "new-recipe", "FROM=x") == ["new-recipe", "--from", "x"]


def test_all_recipes_that_can_be_are_rehearsed(venv: Path) -> None:
    """What tunes a model has none to begin with there: one such recipe would end the command."""
    command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), f"VENV={venv}", "rehearse"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rehearsed = re.findall(r"-m commands rehearse (\S+)", told)
    assert sorted(rehearsed) == sorted(short_name(name) for name in names() if not load(name).data.tunes)
