"""`python -m tests.faults.fewer recipes.gpt_tiny …`: the same as on a machine that has lost all but three GPUs."""

import runpy
import sys

from launch import local

if __name__ == "__main__":
    local.gpus_left = lambda: 3
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
