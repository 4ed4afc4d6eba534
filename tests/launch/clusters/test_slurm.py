"""What Slurm is asked, word by word, and what is made of what it says; `tests/clusters` asks a real one."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.attempt import Fault
from launch.clusters import in_job, slurm
from launch.clusters.description import Cluster, Slurm
from launch.clusters.job import Job
from launch.clusters.requeue import reason_to_go_on
from recipes.registry import ROOT, load
from run import members
from support.errors import BAD_NODE, DONE, GAVE_UP, STOPPED, WEIGHTS_LOST, WRONG_INPUT, BadNodeError, UserError
from support.json_object import JsonObject
from tests.patience import wait_until

WORDS = Slurm("gpu", "project-1", "long", "a100|h100", "big-run")
CLUSTER = Cluster(
    "slurm",
    time_limit="1-00:00:00",
    runs="/scratch/my runs",
    setup=("module load cuda/13",),
    environment={"NCCL_IB_HCA": "mlx5_0,mlx5_1", "SAYS": "it's $HOME"},
    slurm=WORDS,
)
JOB = Job(load("345m"), ("--seed", "7"), CLUSTER, Path("mine.toml"), 4, 8, Path("/scratch/my runs/a"), 200.0, 200_000.0)


def text(job: Job) -> str:
    """A script without what is this checkout's own."""
    return slurm.render(job).replace(sys.executable, "PYTHON").replace(str(ROOT), "PROJECT")


def test_the_batch_script_asks_for_all_that_the_cluster_wants_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    head, _, rest = text(JOB).partition("export STAGECRAFT_SRUN=")
    assert (
        head
        == """#!/bin/bash
# gpt_345m on 4 nodes x 8 ranks; 3 jobs of 1-00:00:00 one after another, by the planner
#SBATCH --job-name="gpt_345m"
#SBATCH --partition="gpu"
#SBATCH --account="project-1"
#SBATCH --qos="long"
#SBATCH --constraint="a100|h100"
#SBATCH --reservation="big-run"
#SBATCH --time="1-00:00:00"
#SBATCH --export=ALL
#SBATCH --nodes=4
#SBATCH --ntasks=32
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@230
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="/scratch/my runs/a/slurm-%j.out"
cd /tmp
export PYTHONPATH=PROJECT${PYTHONPATH:+:$PYTHONPATH}
export STAGECRAFT_RUNS='/scratch/my runs'
export NCCL_IB_HCA=mlx5_0,mlx5_1
export SAYS='it'"'"'s $HOME'
module load cuda/13
"""
    )
    command = "PYTHON -m commands pretrain gpt_345m --seed 7 --run-dir '/scratch/my runs/a' --resume auto &\n"
    assert command in rest and slurm.render(JOB) == slurm.render(JOB)
    assert rest.endswith("exec PYTHON -m launch.clusters.requeue '/scratch/my runs/a' \"$status\" $stopped\n")


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            "pyxis",
            "--container-image=/s/x.sqsh --container-mounts=PROJECT:PROJECT,/r:/r,/tmp:/tmp,/data:/data "
            "--container-workdir=/tmp python3",
        ),
        ("apptainer", "apptainer exec --nv --bind PROJECT:PROJECT,/r:/r,/tmp:/tmp,/data:/data /s/x.sqsh python3"),
    ],
)
def test_a_container_gets_the_project_the_runs_and_what_is_mounted(
    container: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/tmp")
    inside = Slurm(container=container, mounts=("/data:/data",))  # type: ignore[arg-type]
    cluster = Cluster("slurm", runs="/r", image="/s/x.sqsh", slurm=inside)
    line = next(
        line for line in text(replace(JOB, cluster=cluster, run_dir=Path("/r/a"))).splitlines() if "SRUN" in line
    )
    assert line.endswith(f"--nodes=4 --ntasks=32 --ntasks-per-node=8 {words}'")


def test_nodes_are_taken_whole_where_gpus_are_not_counted() -> None:
    written = text(replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(gpus=False))))
    assert "#SBATCH --exclusive\n" in written and "gpus-per-node" not in written


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(partition="a; rm"))), r"slurm.partition is 'a; rm'"),
        (replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(account="-x"))), r"slurm.account is '-x'"),
        (replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(constraint='a"b'))), r"slurm.constraint is"),
        (
            replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(container="pyxis"))),
            r"container is pyxis, and image is ''",
        ),
        (replace(JOB, cluster=replace(CLUSTER, slurm=Slurm(mounts=("/a,b:/c",)))), r"slurm.mounts has '/a,b:/c'"),
        (
            replace(JOB, cluster=Cluster("slurm", image="x", runs="/a,b", slurm=Slurm(container="apptainer"))),
            r"^/a,b holds a comma or a colon, and no container can be given it; rename it",
        ),
        (replace(JOB, cluster=replace(CLUSTER, time_limit="00:03:00")), r"a save needs the last 230 s"),
        (replace(JOB, words=("--notify", "a\nb")), r"holds the end of a line"),
        (replace(JOB, run_dir=Path("/runs/%j")), r"--run-dir /runs/%j holds '%'"),
    ],
)
def test_what_no_script_can_say_is_refused(job: Job, words: str) -> None:
    with pytest.raises(UserError, match=words):
        slurm.check(job)


def test_without_slurm_a_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on this machine; give the command on a login node"):
        slurm.submit(JOB, tmp_path / "job.sh")


def test_data_are_shared_by_an_array_and_put_together_once() -> None:
    script = slurm.render_data("gpt_345m", ("--workers", "4"), CLUSTER, 8)
    assert 'prepare gpt_345m --workers 4 --nodes 8 --node "$SLURM_ARRAY_TASK_ID"\n' in script
    assert (
        script.endswith("prepare gpt_345m --workers 4\n") and '--output="/scratch/my runs/slurm-data-%j.out"' in script
    )


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("srun: error: n1: task 3: Killed", [(3, -9)]),
        ("srun: error: n1: task 3: Segmentation fault (core dumped)", [(3, -11)]),
        ("srun: error: n[0-1]: tasks 0-1,3: Exited with exit code 75", [(0, 75), (1, 75), (3, 75)]),
        ("srun: error: gpu-7: task 12: Out Of Memory", [(12, -9)]),
        ("1: srun: error: n1: task 3: Killed", []),  # what a rank printed
        ("srun: error: Unable to create step for job 4: Requested nodes are busy", []),
    ],
)
def test_how_ranks_ended_is_read_from_what_srun_says(line: str, ends: list[tuple[int, int]]) -> None:
    assert in_job.ends_in(line) == ends


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process as one of a job of two nodes, whose `scontrol` knows their names and whose `squeue` no steps."""
    for name, does in {"scontrol": "echo n0; echo n1", "squeue": ":", "scancel": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    given = {"JOB_ID": "1", "JOB_NODELIST": "n[0-1]", "JOB_NUM_NODES": "2", "NTASKS": "4", "NTASKS_PER_NODE": "2"}
    for name, value in {**given, "D_NODENAME": "n0"}.items():
        monkeypatch.setenv(f"SLURM{name}" if name == "D_NODENAME" else f"SLURM_{name}", value)
    in_job.nodes.cache_clear()
    yield tmp_path
    in_job.nodes.cache_clear()


def test_a_rank_of_another_node_is_known_by_what_srun_says(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "echo 'srun: error: n1: task 3: Killed' >&2; echo 'srun: error: n0: task 0: Exited with exit code 1' >&2"
    monkeypatch.setenv(in_job.SRUN, f'sh -c "{said}; exit 143"')
    assert in_job.world_size() == 4
    with open(os.devnull, "w") as nowhere:
        step = in_job.launch(job, 4, (), nowhere.fileno(), None)
        wait_until(lambda: step.look() or step.over)
        step.close()
    assert [(rank.number, rank.code, rank.node) for rank in step.ended()] == [(3, -9, "n1"), (0, 1, "n0")]
    assert step.status == 1  # 143 is a rank's: nobody asked srun to end


def test_tasks_may_run_another_module(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no ranks of the run that may lie in the same folder."""
    members.join(job, "0")
    monkeypatch.setenv(in_job.SRUN, "echo")
    with open(job / "said", "w+") as said:
        step = in_job.launch(job, 4, (), said.fileno(), None, ["commands.preflight", "tiny"])
        wait_until(lambda: step.look() or step.over)
        step.close()
    assert (job / "said").read_text() == "-m launch.clusters.task commands.preflight tiny\n" and step.ranks == {}


def test_a_node_is_kept_out_after_three_faults_in_a_row(job: Path) -> None:
    blamed = in_job.Blamed()
    for rank in (2, 3, 0, 3, 2):
        blamed.take(job, Fault("it broke", rank, -9), 4)
    blamed.take(job, Fault("it hangs"), 4)
    for rank in (2, 2):
        blamed.take(job, Fault("it broke", rank, -9), 4)
    with pytest.raises(BadNodeError, match="3 faults in a row began on node n1; the last: it broke") as ended:
        blamed.take(job, Fault("it broke", 3, -9), 4)
    assert ended.value.status == BAD_NODE


QUEUED, SAVED = {"event": "queued"}, {"event": "saved"}


@pytest.mark.parametrize(
    ("status", "stopped", "before", "goes_on"),
    [
        (STOPPED, False, [], True),
        (STOPPED, True, [], False),  # its user did it
        (BAD_NODE, False, [], True),
        (1, False, [], True),
        (137, False, [QUEUED, QUEUED], True),
        (STOPPED, False, [SAVED, QUEUED, QUEUED, QUEUED], False),  # three jobs came to nothing
        (STOPPED, False, [QUEUED, QUEUED, QUEUED, SAVED], True),
        *((status, False, [], False) for status in (DONE, WRONG_INPUT, WEIGHTS_LOST, GAVE_UP)),
    ],
)
def test_a_job_is_queued_again_where_that_helps(
    status: int, stopped: bool, before: list[JsonObject], goes_on: bool
) -> None:
    assert bool(reason_to_go_on(status, stopped, before)) is goes_on
