"""`transformers serve` as a child: started, waited for until it answers, and ended with its parent."""

import ctypes
import errno
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from inference.served import Served, as_hub
from support.errors import CrashedError, UserError
from support.signals import on_ctrl_c

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0  # for requests that are being answered
NEAR = 50  # ports that are tried where one is taken
SET_PARENT_DEATH_SIGNAL = 1  # of <linux/prctl.h>
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # where one asks who listens everywhere


@dataclass(frozen=True)
class Address:
    """Where to listen. Errors: `UserError` where there is no such port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port {self.port} must be from 1 to 65535")

    @property
    def near(self) -> str:
        """The host that a client on this machine asks."""
        return EVERYWHERE.get(self.host, self.host)

    @property
    def url(self) -> str:
        return f"http://{f'[{self.near}]' if ':' in self.near else self.near}:{self.port}"

    def check(self) -> None:
        """Errors: `UserError` where nobody can listen there; where the port is taken it names a free one."""
        try:
            _listen(self.host, self.port)
        except socket.gaierror as error:
            raise UserError(f"--host {self.host}: {error.strerror}; give an address of this machine") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"{self.host} port {self.port}: {error.strerror}; give another --host or --port"
                ) from None
            free = next((port for port in range(self.port + 1, self.port + NEAR) if _is_free(self.host, port)), None)
            raise UserError(
                f"port {self.port} of {self.host} is in use; give another"
                + (f": --port {free} is free" if free else " --port")
            ) from None


def _listen(host: str, port: int) -> None:
    """Listen for a moment, as the server will."""
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()


def _is_free(host: str, port: int) -> bool:
    try:
        _listen(host, port)
    except (OSError, OverflowError):
        return False
    return True


def serve(served: Served, address: Address, options: Sequence[str] = ()) -> None:
    """Serve until Ctrl-C. `options` are more of `transformers serve`.

    Errors: `CrashedError` where the server ends by itself.
    """
    with as_hub(served) as cache:
        offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        place = ["--host", address.host, "--port", str(address.port)]
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", served.name, *place, *options]
        server = subprocess.Popen(
            command,
            env={**os.environ, **offline},
            stdin=subprocess.DEVNULL,
            process_group=0,  # its own: Ctrl-C comes to us alone, and we end it as it should be ended
            preexec_fn=_ends_with_parent,
        )
        try:
            with on_ctrl_c(_end):
                if _answers(server, address):
                    print("\n".join(introduction(served, address)), flush=True)
                status = server.wait()
            raise CrashedError(f"transformers serve ended with status {status}; its lines above say why")
        except _EndedError:
            if sys.stdout.isatty():
                print()  # the terminal shows ^C
        finally:
            _stop(server)


class _EndedError(Exception):
    """Ctrl-C: the usual end of a server."""


def _end() -> None:
    raise _EndedError


def _ends_with_parent() -> None:
    """Have the system end this process where its parent is killed or its terminal goes: else the port stays taken."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _answers(server: "subprocess.Popen[bytes]", address: Address) -> bool:
    """Wait until it answers, as it does when it has read the model; False where it ends before."""
    while server.poll() is None:
        asked = http.client.HTTPConnection(address.near, address.port, timeout=1)  # which knows no proxy
        try:
            asked.request("GET", "/health")
            if asked.getresponse().status == http.client.OK:
                return True
        except OSError:
            time.sleep(POLL_SECONDS)
        finally:
            asked.close()
    return False


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """End it; what is being answered has a moment, and less where Ctrl-C comes again."""
    server.terminate()
    try:
        with on_ctrl_c(_end):
            server.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, _EndedError):
        server.kill()
        server.wait()


def introduction(served: Served, address: Address) -> list[str]:
    """What its user has to know, with a line that works."""
    words: dict[str, object] = {"model": served.name, "max_tokens": min(40, max(1, (served.context or 80) // 2))}
    if served.template:
        path, words["messages"] = "chat/completions", [{"role": "user", "content": "Hello"}]
    else:
        path, words["prompt"] = "completions", "Hello"
    curl = f"curl {address.url}/v1/{path} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(words))}"
    lines = [f"serving {served.folder} as {served.name} at {address.url}/v1; Ctrl-C ends it"]
    if not served.template:
        lines.append("its tokeniser has no chat template: /v1/completions answers, /v1/chat/completions does not")
    if served.context:
        lines.append(f"each request needs max_tokens: with the prompt they fit into {served.context} tokens")
    return [*lines, curl]
