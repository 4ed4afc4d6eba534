"""What docs/json.md says of a command's JSON, held against what the command prints."""

import itertools
import re
from typing import Any

from recipes.registry import ROOT

Tree = dict[str, Any]  # by step of a key: `name`, `name?`, `*` or `[]`; nothing below a leaf


def sections() -> dict[str, Tree]:
    """The keys of each command."""
    found: dict[str, Tree] = {}
    for section in (ROOT / "docs" / "json.md").read_text().split("\n## ")[1:]:
        title, *lines = section.splitlines()
        tree: Tree = {}
        cells = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
        for key in re.findall(r"`([^`]+)`", " ".join(cells)):
            groups = [part.split(",") for part in re.split(r"[{}]", key)]  # a comma stands within braces only
            for parts in itertools.product(*groups):
                node = tree
                for step in "".join(parts).replace("[]", ".[]").strip(".").split("."):
                    node = node.setdefault(step, {})
        found |= dict.fromkeys(title.split(", "), tree)
    return found


def every(tree: Tree, path: str = "") -> set[str]:
    """All keys of a tree."""
    return {f"{path}.{step}" for step in tree}.union(*(every(below, f"{path}.{step}") for step, below in tree.items()))


def parts(value: Any) -> list[Any]:
    """A value, or all that is in a list, at any depth."""
    return [part for each in value for part in parts(each)] if isinstance(value, list) else [value]


def has(value: Any, tree: Tree, path: str = "") -> set[str]:
    """The documented keys that a value has. Errors: `AssertionError` for a key too many or too few."""
    if not tree:
        assert not any(isinstance(each, dict) for each in parts(value)), f"{path} has keys"
        return set()
    if "[]" in tree:
        assert isinstance(value, list), path
        return {f"{path}.[]"}.union(*(has(each, tree["[]"], f"{path}.[]") for each in value))
    assert isinstance(value, dict), path
    if "**" in tree:
        return {f"{path}.**"}
    if "*" in tree:
        return {f"{path}.*" for _ in value}.union(*(has(each, tree["*"], f"{path}.*") for each in value.values()))
    steps = {step.removesuffix("?"): step for step in tree}
    needed = {name for name, step in steps.items() if name == step}
    assert needed <= value.keys() <= steps.keys(), f"{path}: {needed - value.keys() or value.keys() - steps.keys()}"
    below = (has(each, tree[steps[name]], f"{path}.{steps[name]}") for name, each in value.items())
    return {f"{path}.{steps[name]}" for name in value}.union(*below)


def check(command: str, *values: Any) -> None:
    """Each value has no key that docs/json.md does not name; together they have all."""
    tree = sections()[command]
    assert set().union(*(has(value, tree) for value in values)) == every(tree)
