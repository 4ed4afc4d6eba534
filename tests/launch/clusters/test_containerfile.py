"""The container file, as a parser of container files reads it. Nothing here builds it."""

import io
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from model.engine import device
from model.engine.config import parse
from recipes.registry import ROOT
from tests.test_house import ROOMS, pins

FILE = ROOT / "launch" / "clusters" / "Containerfile"
NOT_RUN = {"bench"}  # rooms that no node needs


@pytest.fixture(scope="module")
def parser() -> DockerfileParser:
    return DockerfileParser(fileobj=io.BytesIO(FILE.read_bytes()))


def values(parser: DockerfileParser, *names: str) -> Iterator[str]:
    return (each["value"] for each in parser.structure if each["instruction"] in names)


def copied(parser: DockerfileParser) -> list[str]:
    """What the last stage takes from the project."""
    last = max(index for index, each in enumerate(parser.structure) if each["instruction"] == "FROM")
    lines = [each["value"].split() for each in parser.structure[last:] if each["instruction"] == "COPY"]
    return [source for *sources, _ in lines if not sources[0].startswith("--from=") for source in sources]


def test_only_instructions_that_are_meant(parser: DockerfileParser) -> None:
    found = {each["instruction"] for each in parser.structure}
    assert found == {"COMMENT", "FROM", "RUN", "COPY", "ENV", "WORKDIR"}  # no ENTRYPOINT, no ARG, no ADD


def test_the_images_below_stay_the_same(parser: DockerfileParser) -> None:
    images = parser.parent_images
    assert len(images) == 2 and len(set(images)) == 1
    assert re.fullmatch(r"docker\.io/nvidia/cuda:13\.\d+\.\d+-base-ubuntu24\.04", images[0])


def test_every_room_that_a_run_needs_is_copied(parser: DockerfileParser) -> None:
    sources = copied(parser)
    assert {each for each in sources if (ROOT / each).is_dir()} == {*ROOMS, "ds_configs"} - NOT_RUN
    assert all((ROOT / each).exists() for each in sources) and len(sources) == len(set(sources))
    for line in (value.split() for value in values(parser, "COPY")):
        assert len(line) > 2 or line[0] == line[1], f"COPY {' '.join(line)}"  # each room under its own name


def test_the_build_sees_what_is_copied(parser: DockerfileParser) -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    seen = [line[1:] for line in lines if line.startswith("!")]
    assert lines[lines.index("*") :][0] == "*" and sorted(seen) == sorted(copied(parser))


def test_what_is_installed_are_our_versions(parser: DockerfileParser) -> None:
    installs = [words for run in values(parser, "RUN") if "pip install" in run for words in [shlex.split(run)]]
    first, second = (words[words.index("install") + 1 :] for words in installs)
    named = ["--requirement", "requirements.txt", "--constraint", "constraints.txt"]
    assert first == ["--no-cache-dir", *named]
    assert "--no-deps" in second and second[second.index("--editable") + 1] == "."
    exact = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    assert pins("requirements.txt").items() <= exact.items()
    before = next(index for index, each in enumerate(parser.structure) if "--requirement" in each["value"])
    needed = [each["value"] for each in parser.structure[:before] if each["instruction"] == "COPY"]
    assert needed == ["requirements.txt constraints.txt ./"]  # else each change of the code would install all anew


def test_nothing_secret_and_no_leftovers(parser: DockerfileParser) -> None:
    assert not re.search(r"TOKEN|SECRET|PASSWORD|_KEY\b", FILE.read_text())
    for run in values(parser, "RUN"):
        assert ("apt-get install" in run) == ("rm -rf /var/lib/apt/lists/*" in run)
        assert not re.search(r"\b(gcc|g\+\+|build-essential|openssh\S*|curl|wget|git)\b", run)


def test_python_finds_the_project_from_anywhere(parser: DockerfileParser) -> None:
    settings: dict[str, Any] = parser.envs
    places = list(values(parser, "WORKDIR"))
    assert settings["PYTHONPATH"] == places[-1] and settings["PATH"].startswith("/opt/venv/bin:")
    assert "/opt/venv /opt/venv" in " ".join(values(parser, "COPY"))  # a virtual environment knows its own place


def test_the_jsons_that_need_a_compiler_are_named() -> None:
    jsons = sorted((ROOT / "ds_configs").glob("*.json"))
    needing = {path.name for path in jsons if device._kernels(parse(path))}
    named = re.findall(r"`(\w+\.json)`", (ROOT / "docs" / "clusters" / "kubernetes.md").read_text())
    assert needing == set(named)
