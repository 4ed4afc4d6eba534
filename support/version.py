"""This project's version."""

import importlib.metadata
import tomllib
from pathlib import Path


def version() -> str:
    """The version that is installed, or that of a checkout that is not."""
    try:
        return importlib.metadata.version("stagecraft")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["version"])
