"""The JSON Schema that editors check and complete a cluster's TOML with, made from its description.

`python -m launch.clusters.schema` writes it anew.
"""

import json

from launch.clusters.description import Cluster
from recipes.registry import ROOT
from support.files import write
from support.json_object import JsonObject

FILE = ROOT / "docs" / "cluster.schema.json"


def schema() -> JsonObject:
    """The whole schema: every key with its type, its default and a line that says what it is."""
    from pydantic import TypeAdapter

    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **TypeAdapter(Cluster).json_schema(),
        "title": "A cluster as Stagecraft takes it",
    }


if __name__ == "__main__":
    write(FILE, json.dumps(schema(), indent=1) + "\n")
    print(f"{FILE} is written")
