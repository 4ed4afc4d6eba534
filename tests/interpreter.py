"""`python -m module` in a fork of the clean process that has imported torch, DeepSpeed and transformers already.

A fresh interpreter takes seconds of CPU time to import them, and a training command starts five. Here a command is a
fork of the fork server, and so is every Python module that it starts in turn: the front end, DeepSpeed's launcher and
the ranks. They stay processes of their own, each a child of the one that started it, with its arguments, environment,
folder, session and streams; signals and exit statuses are what they are elsewhere. What only a fresh interpreter shows
(what a module imports by itself, its noise) is shown by the tests that start one: `fresh` of `running.Command`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "deepspeed", "transformers", "tests.preload"])


class Process(context.Process):  # type: ignore[name-defined]
    """A module run in a fork of the fork server, with files for its streams."""

    def __init__(self, arguments: list[str], cwd: str, env: Mapping[str, str], streams: tuple[str, str, str]) -> None:
        super().__init__(target=_first, args=(arguments, cwd, dict(env), streams))


def _first(arguments: list[str], cwd: str, env: dict[str, str], streams: tuple[str, str, str]) -> NoReturn:
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND if number else os.O_RDONLY), number)
    os.chdir(cwd)
    become(arguments, env)


class _Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Forks where a Python module is to be started, instead of starting an interpreter."""

    def __init__(self, args: Any, *more: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
        if args[0] == sys.executable and "-m" in args[1:3]:
            sys.stdout.flush()  # or the fork says it again
            sys.stderr.flush()
            options["preexec_fn"] = partial(_next, list(args[1:]), dict(os.environ if env is None else env))
        super().__init__(args, *more, env=env, **options)


def _next(arguments: list[str], env: dict[str, str]) -> NoReturn:
    # Files that the new program would not have. Their numbers stay taken: objects of the old one may close them yet.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2:
            os.dup2(nowhere, number)
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    become(arguments, env)


def become(arguments: list[str], env: dict[str, str]) -> NoReturn:
    """Be a fresh `python arguments`, as far as a module can tell. The process ends with it."""
    os.environ.clear()
    os.environ.update(env)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # `subprocess` has given them back to the system
        signal.signal(number, signal.SIG_IGN)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # its parent may have replaced them
    sys.stdout.reconfigure(write_through="-u" in arguments[:1])  # type: ignore[union-attr]
    subprocess.Popen = _Popen  # type: ignore[misc]
    module = arguments[arguments.index("-m") + 1]
    sys.orig_argv = [sys.executable, *arguments]
    sys.argv = [module, *arguments[arguments.index("-m") + 2 :]]
    sys.modules.pop(module, None)
    os._exit(_run(module))


def _run(module: str) -> int:
    """Run a module to its end, and what is to be done at the end of an interpreter; returns the exit status."""
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status & 0xFF
