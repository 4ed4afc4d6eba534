"""Downloads that are checked and never installed: files from the package index, packages from Debian."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.errors import UserError
from support.files import NO_ROOM, NoRoomError, give_name


def cache_directory() -> Path:
    """Where downloads are kept: `$STAGECRAFT_CACHE`, else `~/.cache/stagecraft`."""
    return Path(os.environ.get("STAGECRAFT_CACHE", Path.home() / ".cache" / "stagecraft"))


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """Download a wheel from the package index, check its hash, and keep it in the cache. It is not installed.

    Errors: `UserError` where it cannot be fetched, or its hash is another.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", requirement]
    return _fetch(command, requirement, sha256, ".whl")


def fetch_sdist(requirement: str, sha256: str) -> Path:
    """The same for a source archive. Nothing of it is run.

    Errors: as `fetch_wheel`.
    """
    script = Path(__file__).with_name("sdist.py")
    return _fetch([sys.executable, "-P", str(script), requirement], requirement, sha256, ".tar.gz")


def _fetch(command: list[str], requirement: str, sha256: str, suffix: str) -> Path:
    target = cache_directory() / f"{requirement.replace('==', '-')}{suffix}"
    if target.exists() and file_sha256(target) == sha256:
        return target
    with _downloaded(command, requirement, f"*{suffix}", f"check the network, or put it at {target}") as file:
        found = file_sha256(file)
        if found != sha256:
            raise UserError(
                f"{requirement} has sha256 {found}, not {sha256}: not the file that was meant; fetch it again"
            )
        give_name(file, target)
    return target


@contextmanager
def fetch_debian(package: str) -> Iterator[tuple[Path, str]]:
    """Download a Debian package and unpack it. It is not installed. apt checks it against Debian's signed index.

    The block gets the folder, which is there as long as the block lasts, and the version. Errors: `UserError` where
    apt or dpkg-deb is missing, or does not know the package.
    """
    advice = "it takes Debian's apt-get and dpkg-deb, an index (apt-get update) and a network"
    with _downloaded(["apt-get", "download", package], package, "*.deb", advice) as archive:
        folder = archive.with_suffix("")
        done = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"could not unpack {archive.name}: {done.stderr.strip()}; check the space on the disk")
        yield folder, archive.name.split("_")[1]


@contextmanager
def _downloaded(command: list[str], what: str, pattern: str, advice: str) -> Iterator[Path]:
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        except FileNotFoundError:
            raise UserError(f"could not download {what}: there is no {command[0]} here; {advice}") from None
        found = list(Path(scratch).glob(pattern))
        if done.returncode or len(found) != 1:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            if (number := re.search(r"(?:\[Errno |OSError\()(\d+)", reason)) and int(number[1]) in NO_ROOM:
                raise NoRoomError(f"no room left in {cache} for {what}; free some, or set STAGECRAFT_CACHE elsewhere")
            raise UserError(f"could not download {what}: {reason}; {advice}")
        yield found[0]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
