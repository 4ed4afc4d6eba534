"""A task of a Slurm step as a rank: who it is stands in Slurm's variables."""

import os
import runpy
import socket
import sys

SAME = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}


def main() -> None:
    """Be the rank that this task is; the arguments are a module and what it gets."""
    os.environ.update({ours: os.environ[theirs] for ours, theirs in SAME.items()})
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError:  # a node whose name only Slurm knows
        os.environ["MASTER_ADDR"] = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
