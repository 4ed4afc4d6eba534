"""A recipe that is copied: by a command that keeps it true, or by hand, where a forgotten name is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import recipes
from commands import pretrain
from commands.__main__ import main
from recipes import registry
from recipes.new import STATUS, new_recipe
from recipes.registry import ROOT, load, names
from tests.commands.documented import check


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of recipes/ beside the Makefile. What is written there is a recipe like the others."""
    folder = tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(recipes, "__path__", [str(folder)])
    for name in [name for name in sys.modules if name.startswith("recipes.gpt_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_a_copy_is_the_recipe_under_another_name(folder: Path) -> None:
    for name in names():
        source, short = load(name), f"mine.{registry.short_name(name)}"
        path = new_recipe(short, source)
        assert path.parent == folder and load(short) == load(path.stem)
        assert load(short) == dataclasses.replace(source, name=path.stem, status=STATUS)
        header, old = (file.read_text().split('"""')[1] for file in (path, folder / f"{name}.py"))
        assert header.startswith(f"GPT {short}: begun as a copy of {name}.\n\nparameters ")
        figures = re.findall(r"^(?:parameters|tokens a step|steps|FLOPs|cluster) .*$", header, re.MULTILINE)
        assert figures == re.findall(r"^(?:parameters|tokens a step|steps|FLOPs|cluster) .*$", old, re.MULTILINE)
        assert len(path.read_text()) <= len((folder / f"{name}.py").read_text()) + 60


def test_the_command_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("commands.new_recipe.ROOT", folder.parent)
    monkeypatch.setattr("sys.argv", ["stagecraft", "new-recipe", "wide.1", "--from", "345m"])
    main()
    assert "wrote recipes/gpt_wide_1.py, a copy of gpt_345m" in (said := capfd.readouterr().out)
    assert "make plan-wide.1\n" in said and said.endswith("make wide.1\n")
    monkeypatch.setattr("sys.argv", ["stagecraft", "new-recipe", "wide.2", "--from", "wide.1", "--json"])
    main()
    values = json.loads(capfd.readouterr().out)
    check("new-recipe", values)
    assert (values["recipe"], values["from"]) == ("gpt_wide_2", "gpt_wide_1")
    known = subprocess.run(["make", "-C", folder.parent, "help"], capture_output=True, text=True, check=True).stdout
    assert " wide.1 wide.2" in known


@pytest.mark.parametrize(("name", "words"), [
    ("../mine", "'../mine' is no name for a recipe"), ("Mine", "'Mine' is no name"), ("", "'' is no name"),
    ("mine two", "is no name"), ("a__b", "is no name"), ("gpt_", "is no name"), ("mine\n", "is no name"),
    ("345m", "recipes/gpt_345m.py exists already"), ("gpt_1_3b.py", "gpt_1_3b.py exists already"),
    ("settings", "recipes/settings.py exists already"), ("demo", "make demo does something else"),
])  # fmt: skip
def test_a_name_that_is_none_or_taken_is_refused(name: str, words: str, folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=re.escape(words)):
        new_recipe(name, load("tiny"))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_file_of_another_form_is_copied_by_hand(folder: Path) -> None:
    text = (folder / "gpt_tiny.py").read_text()
    (folder / "gpt_mine.py").write_text(text.replace('name="gpt_tiny"', 'name="gpt_" + "mine"'))
    with pytest.raises(ValueError, match=r'gpt_mine\.py has name="gpt_mine" 0 times'):
        new_recipe("other", load("mine"))
    assert not (folder / "gpt_other.py").exists()


def test_a_copy_with_the_old_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It trained the original, without a word."""
    copy = folder / "gpt_mine.py"
    copy.write_text((folder / "gpt_tiny.py").read_text().replace("hidden_size=192", "hidden_size=96"))
    refusal = 'recipes/gpt_mine.py: the recipe\'s name is gpt_tiny; write name="gpt_mine", as the file is called'
    with pytest.raises(ValueError, match=re.escape(refusal)):
        load("mine")
    monkeypatch.setattr("sys.argv", [str(copy)])
    with pytest.raises(SystemExit):
        pretrain.main(str(copy))
    assert capfd.readouterr().err == f"error: {refusal}\n"
    assert load("tiny").model.hidden_size == 192


@pytest.mark.parametrize(("old", "new", "words"), [
    ("num_layers=2", "num_layers=two", "NameError: name 'two' is not defined"), ("num_layers=2", "layers=2", "layers"),
    ("RECIPE = Recipe(", "RECIPE = Recipe)", "SyntaxError"), ("shakespeare", "\xe9", "SyntaxError"),
    ("lr=3e-3", "lr=-1", "optimizer.lr is -1"),
])  # fmt: skip
def test_a_mistake_in_a_recipe_names_its_file_and_spoils_no_other(
    old: str, new: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folder / "gpt_tiny.py").read_text().replace(old, new)
    (folder / "gpt_mine.py").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=f"recipes/gpt_mine.py: .*{re.escape(words)}"):
        load("mine")
    assert load("tiny").name == "gpt_tiny"
    for command in ("plan", "pretrain", "rehearse", "prepare"):
        monkeypatch.setattr("sys.argv", ["stagecraft", command, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0


def test_a_recipe_starts_by_its_path_from_anywhere(tmp_path: Path) -> None:
    """Python then looks beside the file, where `settings` and `recipe` lie, and not in the project."""
    (tmp_path / "model.py").write_text("raise SystemExit('not this one')")
    line = [sys.executable, str(ROOT / "recipes" / "gpt_tiny.py"), "--deepspeed", "--local-rank=0", "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Train gpt_tiny under the deepspeed launcher" in done.stdout, done.stderr
