"""Hosts of a hostfile. What needs several machines is in tests/clusters."""

import os
import signal
import socket
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from launch.clusters.description import Cluster, Hostfile
from launch.hosts import far, hosts
from launch.hosts.hosts import Hosts, chosen, hosts_of
from launch.hosts.near import Start, versions
from launch.hosts.talk import Talk
from run import events, members
from run.metrics import read_steps
from support.errors import UserError
from tests.commands.running import Command, small, write_corpus

TWO = {"a": [0, 1], "b": [0, 1, 2]}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("", "", TWO),
        ("b", "", {"b": [0, 1, 2]}),
        ("a@b:0,2", "", {"a": [0, 1], "b": [0, 2]}),
        ("", "a", {"b": [0, 1, 2]}),
        ("", "a:0@b:1", {"a": [1], "b": [0, 2]}),
    ],
)
def test_hosts_and_slots_are_chosen_in_deepspeed_s_words(
    include: str, exclude: str, left: dict[str, list[int]]
) -> None:
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    assert chosen(TWO, Hostfile("f", include=include, exclude=exclude)) == left
    assert parse_inclusion_exclusion({host: len(each) for host, each in TWO.items()}, include, exclude) == left


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (Hostfile("f", include="c"), "'c' is no host and slots of f"),
        (Hostfile("f", include="a:2"), "'a:2' is no host and slots of f"),
        (Hostfile("f", exclude="a@b"), "leaves no host of f"),
    ],
)
def test_what_cannot_be_chosen_is_refused(file: Hostfile, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen(TWO, file)


def test_ranks_are_counted_over_the_hosts() -> None:
    start = Start("/run", TWO, 1, "10.0.0.1", 29500, {}, 30.0)
    assert start.world_size == 5 and start.numbers == range(2, 5)
    assert start.command()[-4:] == ["--module", "commands.rank", "--run-dir", "/run"]
    assert replace(start, words=["commands.preflight", "tiny"]).command()[-2:] == ["commands.preflight", "tiny"]
    assert hosts._first(3, TWO) == {"a": [0, 1], "b": [0]} and hosts._first(2, TWO) == {"a": [0, 1]}


def test_variables_that_ranks_need_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("a slots=1\n")
    values = {"NCCL_IB_HCA": "mlx5", "GLOO_SOCKET_IFNAME": "ib0", "HF_HOME": "/h", "WANDB_MODE": "offline", "MINE": "1"}
    for name, value in {**values, "OTHER": "2", "CUDA_VISIBLE_DEVICES": "0"}.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster("hostfile", environment={"NCCL_DEBUG": "INFO"}, secrets=("MINE",))
    found = hosts_of(str(tmp_path / "hosts"), cluster)
    assert found
    assert values.items() <= found.variables.items() and found.variables["NCCL_DEBUG"] == "INFO"
    assert not {"OTHER", "CUDA_VISIBLE_DEVICES", "HOME", "PATH"} & found.variables.keys()


def test_two_ends_talk_whatever_the_size_and_whatever_else_is_printed() -> None:
    (there, back), (ears, mouth) = os.pipe(), os.pipe()
    one, other = Talk(there, mouth), Talk(ears, back)
    long = "x" * 300_000  # more than a pipe holds
    one.say(word=long)
    os.write(mouth, b"")
    heard = []
    while not heard:
        heard = other.heard()
        one.say(beat=True)
    assert heard[0] == {"word": long}
    os.write(back, b'Welcome to this machine!\n[1]\n{"rank": 1}\n{"ra')
    assert one.heard() == [{"rank": 1}] and not one.over
    os.close(back)
    assert one.heard() == [] and one.over
    for descriptor in (there, ears, mouth):
        os.close(descriptor)


def test_lines_of_hosts_do_not_mix() -> None:
    node, (ears, mouth) = far.Node.__new__(far.Node), os.pipe()
    os.set_blocking(ears, False)
    node.errors, node.said, node._begun = ears, deque(), b""
    os.write(mouth, b"whole\nbeg")
    assert node.printed() == b"whole\n" and node.printed() == b""
    os.write(mouth, b"un\nla")
    assert node.printed() == b"begun\n"
    os.write(mouth, b"st")
    os.close(mouth)
    assert node.printed() == b"last\n" and list(node.said) == ["whole", "begun", "last"]
    os.close(ears)


SSH = """#!{python}
import os, sys
from pathlib import Path
assert "BatchMode=yes" in sys.argv
host = sys.argv[-2]
said, status = {said!r}[host]
print(said, file=sys.stderr)
sys.exit(status)
"""


def test_what_ssh_says_becomes_a_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "locked": ("root@locked: Permission denied (publickey,password).", 255),
        "new": ("Host key verification failed.", 255),
        "changed": ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", 255),
        "typo": ("ssh: Could not resolve hostname typo: Name or service not known", 255),
        "closed": ("ssh: connect to host closed port 22: Connection refused", 255),
        "down": ("ssh: connect to host down port 22: Connection timed out", 255),
        "empty": ("sh: 1: cd: can't cd to /x", far.NO_PROJECT),
        "bare": ("sh: 1: exec: python: not found", 127),
        "old": ("python: No module named launch.hosts.near", 1),
        "odd": ("something else", 255),
    }
    tool = tmp_path / "ssh"
    tool.write_text(SSH.format(python=sys.executable, said=said))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(hosts, "is_here", lambda host: False)
    with pytest.raises(UserError) as refused:
        Hosts(Hostfile("f"), {host: [0] for host in said}).check(tmp_path / "run")
    lines = dict(line.removeprefix("host ").split(": ", 1) for line in refused.value.lines)
    assert list(lines) == list(said)
    remedies = (
        "ssh-copy-id locked",
        "check it: ssh new",
        "ssh-keygen -R changed",
        "correct the hostfile",
        "start sshd",
    )
    for line, remedy in zip(lines.values(), remedies, strict=False):
        assert remedy in line
    assert lines["down"].startswith("it does not answer; start it")
    assert "share it" in lines["empty"] and "make setup there" in lines["bare"] and "is another one" in lines["old"]
    assert lines["odd"] == "something else"
    assert not list(tmp_path.glob(".seen*"))


def test_a_host_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Played:
        host, said = "far", ()

        def __init__(self, **facts: object) -> None:
            self.facts = {**own, "sees": True, "boards": 0, "host": "far", **facts}

    own = versions()
    wrong = [
        hosts._wrong(Played(**facts), 4, own, tmp_path)
        for facts in (  # type: ignore[arg-type]
            {},
            {"boards": 8},
            {"boards": 2},
            {"sees": False},
            {"project": "x"},
            {"version of torch": "1.0"},
        )
    ]
    assert wrong[:2] == [None, None]
    assert wrong[2] == "it has 2 GPUs and not 4; correct its slots in the hostfile"
    assert "it does not see" in str(wrong[3]) and "the project there is x" in str(wrong[4])
    assert "the version of torch there is 1.0" in str(wrong[5])


def test_this_machine_is_known_by_its_addresses() -> None:
    assert hosts.is_here("localhost") and hosts.is_here("127.0.0.1") and hosts.is_here(socket.gethostname())
    assert not hosts.is_here("192.0.2.1") and not hosts.is_here("no-such-host.invalid")


def test_without_ssh_or_pdsh_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    far = Hosts(Hostfile("f"), {"192.0.2.1": [0]})
    with pytest.raises(UserError, match="there is no ssh here"):
        far.check(tmp_path)
    with pytest.raises(UserError, match="there is no pdsh here"):
        replace(far, file=Hostfile("f", launcher="pdsh")).check(tmp_path)


def test_a_hostfile_that_names_this_machine_needs_no_ssh(tmp_path: Path) -> None:
    """A rank is killed meanwhile: the node says which, and the run goes on."""
    flags = small(write_corpus(tmp_path / "corpus.jsonl"))
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    path = tmp_path / "run"
    run = Command(tmp_path, "recipes.gpt_tiny", *flags, "--run-dir", str(path), "--hostfile", str(tmp_path / "hosts"))
    metric = path / "metrics.jsonl"
    run.wait_until(lambda: metric.exists() and len(read_steps(metric)) >= 4)
    rank = members.read(path, "1")
    assert rank
    os.kill(rank.pid, signal.SIGKILL)
    done = run.finish()
    assert done.returncode == 0, done.stderr
    (fault,) = [line for line in events.read(path) if line["event"] == "fault"]
    assert fault["reason"] == "rank 1 of 2 on node localhost was killed by SIGKILL"
    assert [step["step"] for step in read_steps(metric)] == list(range(1, 21))
