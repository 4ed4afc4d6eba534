"""A lock around the building of kernels that ends with the process that holds it.

DeepSpeed compiles kernels at their first use, with torch's builder. torch marks a build by a file and waits until that
is gone: for ever, where the build was killed.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

LOOK_SECONDS = 0.5  # between two looks at a build of another program


class Baton(FileBaton):
    """torch's lock in a build's folder. Whoever of this project wants it holds a lock of the kernel on it meanwhile.

    So a file that is found by who holds that lock was left by a killed build, or is that of another program. A process
    of this machine has it open then. A program of another machine that builds in the same folder cannot be told from a
    killed one.
    """

    def try_acquire(self) -> bool:
        """Wait for one's turn, then create the file, so that other programs wait. All builders get it in the end.

        Who comes later finds all built; who comes after a killed one builds.
        """
        path = Path(self.lock_file_path)
        self.turn = os.open(path.with_name("turn"), os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(self.turn, fcntl.LOCK_EX)
        except OSError:  # storage without locks: as torch does it
            return bool(super().try_acquire())
        while not super().try_acquire():
            if not _is_open(path):
                path.unlink(missing_ok=True)
                continue
            time.sleep(LOOK_SECONDS)
        return True

    def release(self) -> None:
        """Let go of it."""
        with suppress(FileNotFoundError):
            super().release()
        os.close(self.turn)


def let_builds_end_with_their_process() -> None:
    """Give torch's builder this lock in place of its own, in this process."""
    cpp_extension.FileBaton = Baton  # type: ignore[attr-defined]


def _is_open(path: Path) -> bool:
    """Whether a process of this machine has a file open, as far as this one may know."""
    import psutil

    name = str(path.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if name in {file.path for file in process.open_files()}:
                return True
    return False
