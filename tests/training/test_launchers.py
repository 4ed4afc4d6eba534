import os

import pytest

from support.errors import UserError
from training import launchers

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", found)
    return found


def test_who_is_started_by_hand_is_no_rank(environ: dict[str, str]) -> None:
    assert not launchers.is_rank() and "RANK" not in environ
    environ.update({**HYDRA, "PMI_SIZE": "1"})  # alone, as under `srun --ntasks 1`
    assert not launchers.is_rank() and "RANK" not in environ


def test_torch_s_own_words_count(environ: dict[str, str]) -> None:
    environ.update({"RANK": "0", **HYDRA})
    assert launchers.is_rank() and environ["RANK"] == "0" and "WORLD_SIZE" not in environ


def test_ranks_of_one_host_meet_there(environ: dict[str, str]) -> None:
    environ.update(HYDRA)
    assert launchers.is_rank()
    assert [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["1", "2", "1"]
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("127.0.0.1", "29500")
    launchers.check_meeting()


def test_ranks_of_several_hosts_must_be_told_where_to_meet(environ: dict[str, str]) -> None:
    environ.update({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    assert launchers.is_rank() and environ["RANK"] == "3"
    with pytest.raises(UserError, match="-x MASTER_ADDR=worker-1 -x MASTER_PORT=29500"):
        launchers.check_meeting()
    environ["MASTER_ADDR"] = "worker-1"
    launchers.check_meeting()
