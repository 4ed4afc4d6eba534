"""Files of a Debian package as a corpus."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

from data.corpus.fetch import cache_directory, fetch_debian
from support.errors import UserError
from support.files import whole_file


def files_of(name: str, package: str, pattern: str, without: str = "") -> Callable[[], list[Path]]:
    """Files whose path in a Debian package matches `pattern`, and not `without`, as JSON lines in the cache."""

    def fetch() -> list[Path]:
        kept = sorted(cache_directory().glob(f"{name}_*.jsonl"))
        if kept:
            return kept[-1:]
        with fetch_debian(package) as (folder, version):
            target = cache_directory() / f"{name}_{version}.jsonl"
            with whole_file(target, "w") as stream:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    inside = str(path.relative_to(folder))
                    if re.search(pattern, inside) and not (without and re.search(without, inside)):
                        text = _text(path)
                        if text:
                            stream.write(json.dumps({"text": text, "path": inside}, ensure_ascii=False) + "\n")
                if not stream.tell():
                    raise UserError(f"Debian's package {package} {version} holds no file like {pattern}; name another")
        return [target]

    return fetch


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    return raw.decode("utf-8", "ignore")
