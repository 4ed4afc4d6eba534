"""What launchers tell a rank, in the words that torch reads. It imports nothing heavy."""

import os

from support.errors import UserError

NUMBER, SIZE, LOCAL, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
WORDS = tuple(  # Open MPI's, MPICH's and Intel MPI's
    dict(zip((NUMBER, SIZE, LOCAL, LOCAL_SIZE), names, strict=True))
    for names in (
        [f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
        ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    )
)
PORT = "29500"  # torch's own


def is_rank() -> bool:
    """Whether a launcher started this process as a rank; then the environment says so in torch's words."""
    if NUMBER in os.environ:
        return True
    told = next((words for words in WORDS if int(os.environ.get(words[SIZE], "1")) > 1), None)
    if told is None:
        return False
    found = {name: os.environ[word] for name, word in told.items() if word in os.environ}
    os.environ.update(found)
    if found.get(LOCAL_SIZE) == found[SIZE]:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", PORT)
    return True


def check_meeting() -> None:
    """Errors: `UserError` where ranks of several hosts are not told where to meet."""
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            "ranks of several hosts are not told where to meet; give mpirun the address of the first host: "
            f"-x MASTER_ADDR=worker-1 -x MASTER_PORT={PORT}, or with MPICH -genv MASTER_ADDR worker-1"
        )
