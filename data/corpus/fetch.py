"""Downloads that are checked and never installed: files from the package index, from npm and from Debian."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.errors import UserError
from support.files import NO_ROOM, NoRoomError, give_name

SCRATCH, DAY = ".fetch-", 86_400  # the beginning of a scratch folder's name; seconds


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


def fetch_npm(requirement: str, integrity: str) -> Path:
    """The same for a package of npm, given as `name@version`; `integrity` is npm's own, "sha512-" and base64.

    Errors: as `fetch_wheel`; where npm is missing.
    """
    target = cache_directory() / f"{requirement.replace('@', '-')}.tgz"
    if target.exists() and _integrity(target) == integrity:
        return target
    command = ["npm", "pack", "--loglevel=error", "--ignore-scripts", requirement]
    with _downloaded(command, requirement, "*.tgz", f"install npm, check the network, or put it at {target}") as file:
        if _integrity(file) != integrity:
            raise UserError(f"{requirement} has {_integrity(file)}, not {integrity}: not the file that was meant")
        give_name(file, target)
    return target


def _integrity(path: Path) -> str:
    with open(path, "rb") as stream:
        return "sha512-" + base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()


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


@dataclass(frozen=True)
class DebianIndex:
    """Debian's lists of packages, as apt has checked them, and the options by which apt finds them."""

    lists: Path
    options: tuple[str, ...]

    def files(self, end: str) -> list[Path]:
        """The lists whose name ends so, for example "_Packages"."""
        return sorted(path for path in self.lists.iterdir() if path.name.endswith(end))


@contextmanager
def debian_index(*languages: str) -> Iterator[DebianIndex]:
    """Fetch the lists of the machine's Debian, with descriptions in some languages, into a folder of our own.

    The block gets them; they are there as long as it lasts. No rights are needed, and the system's lists stay as they
    are: containers switch the descriptions off. Errors: `UserError` where apt is missing or cannot reach them.
    """
    with _scratch() as scratch:
        for name in ("lists", "archives"):
            (scratch / name / "partial").mkdir(parents=True)
        settings = [
            f"Dir::State={scratch}",
            f"Dir::State::lists={scratch}/lists",
            f"Dir::Cache={scratch}",
            "APT::Update::Error-Mode=any",  # else a list that is missing is a warning
            "Acquire::GzipIndexes=false",
            "Acquire::Languages=",
            *(f"Acquire::Languages::={language}" for language in languages or ("none",)),
        ]
        options = [word for setting in settings for word in ("-o", setting)]
        advice = "it takes Debian's apt-get, its sources and a network"
        try:
            done = subprocess.run(["apt-get", "update", *options], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"could not fetch Debian's lists: there is no apt-get here; {advice}") from None
        index = DebianIndex(scratch / "lists", tuple(options))
        missing = [name for name in languages if not index.files(f"_Translation-{name}")]
        if done.returncode or missing:
            told = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [f"no {missing} came"]
            raise UserError(f"could not fetch Debian's lists: {told[0]}; {advice}")
        yield index


@contextmanager
def fetch_debian(package: str, options: Sequence[str] = ()) -> Iterator[tuple[Path, str]]:
    """Download a Debian package and unpack it. It is not installed. apt checks it against Debian's signed index.

    The block gets the folder, which is there as long as the block lasts, and the version. `options` are those of an
    index of our own. Errors: `UserError` where apt or dpkg-deb is missing, or does not know the package.
    """
    advice = "it takes Debian's apt-get and dpkg-deb, an index (apt-get update) and a network"
    with _downloaded(["apt-get", "download", *options, package], package, "*.deb", advice) as archive:
        folder = archive.with_suffix("")
        try:
            done = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"could not unpack {archive.name}: there is no dpkg-deb here; {advice}") from None
        if done.returncode:
            raise UserError(f"could not unpack {archive.name}: {done.stderr.strip()}; check the space on the disk")
        yield folder, archive.name.split("_")[1]


@contextmanager
def _downloaded(command: list[str], what: str, pattern: str, advice: str) -> Iterator[Path]:
    with _scratch() as scratch:
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        except FileNotFoundError:
            raise UserError(f"could not download {what}: there is no {command[0]} here; {advice}") from None
        found = list(scratch.glob(pattern))
        if done.returncode or len(found) != 1:
            told = done.stderr.strip().splitlines() or ["no file came"]
            reason = next((line for line in told if line.startswith("npm error code")), told[-1])  # then npm tells more
            number = re.search(r"(?:\[Errno |OSError\()(\d+)", reason)
            if (number and int(number[1]) in NO_ROOM) or reason.endswith((" ENOSPC", " EDQUOT")):
                raise NoRoomError(
                    f"no room left in {cache_directory()} for {what}; free some, or set STAGECRAFT_CACHE elsewhere"
                )
            raise UserError(f"could not download {what}: {reason}; {advice}")
        yield found[0]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of the cache, for as long as the block lasts. One that a killed process left a day ago is removed."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{SCRATCH}*"):
        with suppress(FileNotFoundError):  # another process removed it
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as folder:
        yield Path(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
