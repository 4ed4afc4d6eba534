"""What a cluster's file may say, and what is said of a wrong one."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from launch.clusters import network
from launch.clusters.asked import reference
from launch.clusters.description import Cluster, Kubernetes, built_in, file_of, label, read
from launch.clusters.schema import FILE, schema
from recipes.registry import load
from support.errors import UserError


def test_the_schema_is_that_of_the_description() -> None:
    """Made anew by: python -m launch.clusters.schema."""
    assert json.loads(FILE.read_text()) == schema()
    sections = [schema(), *schema()["$defs"].values()]
    assert all(value.get("description") for each in sections for value in each["properties"].values())


@pytest.mark.parametrize("name", ["azureml", "hostfile", "k8s", "local", "slurm"])
def test_what_comes_with_the_project(name: str, tmp_path: Path) -> None:
    """All that a file says in comments is right when the comments are taken away."""
    text = built_in()[name].read_text()
    assert text.startswith("#:schema ../../docs/cluster.schema.json\n")
    assert (built_in()[name].parent / "../../docs/cluster.schema.json").resolve() == FILE
    known = read(built_in()[name])
    assert known.kind == {"k8s": "kubernetes"}.get(name, name) and label(built_in()[name]) == name
    file = tmp_path / "all.toml"
    file.write_text(re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE).replace("\nexclude", "\n# exclude"))
    section = tomllib.loads(file.read_text()).get(known.kind, {})
    assert read(file) != known and (name == "local" or set(section) >= {"include"} or len(section) >= 4)


def test_values_in_the_file_take_the_place_of_the_recipe_s() -> None:
    recipe = load("13b")  # 32 nodes of 8 A100
    assert reference(Cluster("slurm"), recipe, None) == recipe.cluster
    assert reference(Cluster("slurm"), recipe, 4).world_size == 32
    smaller = reference(Cluster("slurm", gpus_per_node=4, gpu="h100"), recipe, None)
    assert (smaller.nodes, smaller.gpus_per_node, smaller.gpu) == (64, 4, "h100")
    assert reference(Cluster("slurm", nodes=7), recipe, None).nodes == 7


def test_a_link_s_variables_and_who_wins() -> None:
    assert network.variables("infiniband", 1) == {}
    assert network.variables("infiniband", 2) == {"NCCL_NET": "IB", "NCCL_IB_TIMEOUT": "22"}
    assert network.variables("efa", 2)["FI_PROVIDER"] == "efa"
    assert network.variables("ethernet", 2)["NCCL_IB_DISABLE"] == "1"
    cluster = Cluster("slurm", link="roce", environment={"NCCL_NET": "mine", "X": "1"})
    told = network.environment(cluster, 2, own={"NCCL_NET": "own", "NCCL_IB_TIMEOUT": "23", "OTHER": "2"})
    assert (told["NCCL_NET"], told["NCCL_IB_TIMEOUT"], told["X"]) == ("mine", "23", "1") and "OTHER" not in told
    assert network.link_of(Cluster("kubernetes")) == "ethernet"
    assert network.link_of(Cluster("kubernetes", kubernetes=Kubernetes(rdma_resource="rdma/x"))) == "infiniband"


@pytest.mark.parametrize(("lines", "said"), [
    ('kind = "slrum"', "kind is 'slrum'; did you mean slurm?"), ("", "kind is missing; there are local, hostfile"),
    ('kind = "slurm"\nlink = "infinband"', "link is 'infinband'; did you mean infiniband?"),
    ('kind = "slurm"\npartion = "x"', "there is no key partion; did you mean slurm.partition"),
    ('kind = "slurm"\n[slurm]\npartion = "x"', "there is no key slurm.partion; did you mean partition"),
    ('kind = "slurm"\nnodes = -1', "nodes is -1; it must be at least 0"),
    ('kind = "slurm"\nnodes = "many"', "nodes is 'many': input should be a valid integer"),
    ('kind = "slurm"\ngpu = "h1000"', "there is no GPU 'h1000' in planner/hardware.py; did you mean h100"),
    ('kind = "slurm"\ntime_limit = "1 day"', "time_limit is '1 day'; write [days-]hours:minutes:seconds"),
    ('kind = "slurm"\nruns = "runs"', "runs is 'runs'; write a path from / on"),
    ('kind = "slurm"\nimage = "a\\nb"', "image is 'a\\nb', which holds the end of a line"),
    ('kind = "slurm"\nsetup = "module load"', "setup is 'module load': input should be a valid array"),
    ('kind = "slurm"\nslurm = 3', "slurm is 3: input should be"),
    ('kind = "slurm"\n[slurm]\nmounts = ["data"]', "slurm.mounts has 'data'; write /source:/target"),
    ('kind = "slurm"\n[slurm]\ncontainer = "docker"', "slurm.container is 'docker'; there are pyxis, apptainer"),
    ('kind = "slurm"\n[environment]\n"A B" = "1"', "environment names 'A B'; a variable has letters"),
    ('kind = "slurm"\n[environment]\nA = "1\\n2"', "environment.A is '1\\n2', which holds the end of a line"),
    ('kind = "slurm"\n[environment]\nMY_API_KEY = "1"', "environment.MY_API_KEY would show a secret"),
    ('kind = "slurm"\nsetup = ["export A=1 HF_TOKEN=abc"]', "setup: HF_TOKEN would show a secret; set it in your"),
    ('kind = "slurm"\nsecrets = ["MINE"]\n[environment]\nMINE = "1"', "environment.MINE would show a secret"),
    ('kind = "hostfile"\n[hostfile]\ninclude = "a$(id)"', "hostfile.include is 'a$(id)'; write hosts as in"),
    ('kind = "hostfile"\n[hostfile]\nexclude = "-oProxyCommand=x"', "hostfile.exclude is '-oProxyCommand=x'"),
    ('kind = "hostfile"\n[hostfile]\nssh_port = 70000', "hostfile.ssh_port is 70000; it must be from 1 to 65535"),
    ('kind = "kubernetes"\n[kubernetes]\nshared_memory = "big"', "kubernetes.shared_memory is 'big'; write a size"),
    ('kind = "azureml"\n[azureml]\ndatastore = "blob"', "azureml.datastore is 'blob'; write azureml://"),
    ('kind = "slurm"\n[slurm]\nnodes = 3', "there is no key slurm.nodes; write nodes above the first [section]"),
    ('kind = "slurm"\n[slurm]\nqueue = "a"', "there is no key slurm.queue; did you mean kubernetes.queue?"),
    ('kind = "slurm"\n[environment]\nruns = "/a"', "environment names 'runs'; write runs above the first [section]"),
    ('kind = "slurm"\n[kubernetes]\nqueue = "a"', "[kubernetes] says nothing to kind = 'slurm'; take it out"),
    ('kind = "slurm"\nnodes = "4"', "nodes is '4': input should be a valid integer"),
    ('kind = "slurm"\nnodes = true', "nodes is True: input should be a valid integer"),
    ('kind = "slurm"\nimage = "a"', "image is 'a', and nothing runs it; set slurm.container, or take it out"),
    ('kind = "local"\ntime_limit = "1:00:00"', "time_limit means nothing to a cluster of kind local"),
    ('kind = "hostfile"\ngpus_per_node = 8', "gpus_per_node means nothing to a cluster of kind hostfile: the slots"),
    ('kind = "azureml"\nruns = "/runs"', "runs means nothing to a cluster of kind azureml: azureml.datastore says"),
    ("kind = slurm", "Invalid value (at line 1, column 8); write TOML, as in"),
], ids=lambda value: value.split("\n")[-1][:40])  # fmt: skip
def test_a_wrong_file_is_one_line_with_its_key(lines: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(lines)
    with pytest.raises(UserError) as refused:
        read(file)
    assert str(refused.value).startswith(f"{file}: {said}") and "\n" not in str(refused.value)


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"kind\xff\xfe\0")
    with pytest.raises(UserError, match="binary is not UTF-8 at byte 4; write TOML"):
        read(binary)
    with pytest.raises(UserError, match="is a folder; give a file such as"):
        file_of(str(tmp_path))
    with pytest.raises(UserError, match="there is no cluster 'slrm'; did you mean slurm"):
        file_of("slrm")
    with pytest.raises(UserError, match=r"^nosuch.toml does not exist; give the file of a cluster, or one of azureml"):
        file_of("nosuch.toml")


def test_a_byte_order_mark_and_a_time_of_toml_s_own_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b'\xef\xbb\xbfkind = "slurm"\ntime_limit = 01:30:00\nsetup = ["module load caf\xc3\xa9"]\n')
    assert (read(file).time_limit, read(file).setup) == ("01:30:00", ("module load café",))


def test_a_line_of_setup_may_read_a_secret_from_elsewhere(tmp_path: Path) -> None:
    file, line = tmp_path / "mine.toml", 'export WANDB_API_KEY="$(az keyvault secret show --id x)" HF_TOKEN=$MINE'
    file.write_text(f"kind = 'azureml'\nsetup = ['{line}']\n")
    assert read(file).setup == (line,)


def test_tokenizers_parallelism_is_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('kind = "slurm"\n[environment]\nTOKENIZERS_PARALLELISM = "false"\n')
    assert read(file).environment == {"TOKENIZERS_PARALLELISM": "false"}
