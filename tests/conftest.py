"""Settings that all tests share. Ranks share the cores, so each gets one thread."""

import os
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test depends on the hub
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the tests need no GPU
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and take none, for they start more ranks than there may be
for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR"):  # no account, as most users have none
    os.environ.pop(name, None)
os.environ["NETRC"] = os.devnull  # where wandb would find one

WHOLE = ("tests/commands/test_road.py",)  # files whose tests all look at one run, which takes long to make


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker that is free the next test, and such a file as a whole: no core waits for the end of a long file.

    (pytest-xdist 3.8.0 has marks for that, `--dist loadgroup`, which pytest 9 does not show it.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return path if path in WHOLE else nodeid

    return Scheduling(config, log)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name cases by what every worker sees alike: pytest-xdist refuses a suite whose names differ between workers.

    Bytes may hold a time (gzip writes one), sets come in the order of a process's own hash seed.
    """
    return argname if isinstance(val, bytes | set | frozenset) else None
