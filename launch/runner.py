"""DeepSpeed's launcher, and how its inner process ended: `python -m launch.runner` with the launcher's arguments.

The launcher (DeepSpeed 0.19.8) ends with 0 where a signal killed the process that holds the ranks. Here it ends with
128 + the signal, as a shell has it. What asks ranks to save (SIGUSR2) kills neither of its processes: it may be sent to
all that belong to a job.
"""

import runpy
import signal
import subprocess
import sys

_started: list["subprocess.Popen[bytes]"] = []
_Popen = subprocess.Popen


class _Noted(_Popen):  # type: ignore[misc, type-arg, valid-type]
    """A process that is remembered: the last one holds the ranks."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[call-overload]
        _started.append(self)


def main() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the inner process inherits this; a rank has a handler of its own
    subprocess.Popen = _Noted  # type: ignore[misc, assignment]
    sys.modules.pop("deepspeed.launcher.runner", None)
    runpy.run_module("deepspeed.launcher.runner", run_name="__main__", alter_sys=True)
    status = _started[-1].returncode if _started else 0
    sys.exit(128 - status if status < 0 else status)


if __name__ == "__main__":
    main()
