"""Local files behind a path, a directory or a glob: what each holds, and the split that it belongs to."""

import glob
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.corpus.document import NAMED, farthest, split_named
from support.errors import UserError
from support.json_object import JsonObject

PACKED = (".gz", ".zst")
PLAIN = ".txt .text .md .markdown .rst .adoc .org .tex"
SOURCE_CODE = (
    ".asm .bash .c .cc .clj .cmake .cpp .cs .cu .cuh .cxx .dart .el .erl .ex .f .f90 .go .h .hh .hpp .hs .java .jl .js "
    ".jsx .kt .lean .lisp .lua .m .mjs .ml .mm .nim .php .pl .proto .py .pyi .r .rb .rs .s .scala .sh .sql .swift .ts "
    ".tsx .zig"
)
FORMS = {
    "lines": (".jsonl", ".json", ".ndjson"),
    "table": (".parquet", ".arrow"),
    "text": ("", *PLAIN.split(), *SOURCE_CODE.split()),
}
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
ABOUT_FOLDER = ("readme", "license", "licence", "copying", "notice", "citation", "changelog")
SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(NAMED)})(?=[-._ 0-9]|$)", re.IGNORECASE)


def kind(path: Path) -> tuple[str, bool]:
    """The suffix that says what a file holds, and whether it is packed."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem if packed else path.name).suffix.lower(), packed


def form(path: Path) -> str:
    """What a file holds, by its suffix: "lines" of JSON, a "table", a "text", or "" where we do not read that."""
    suffix, packed = kind(path)
    return "" if packed and not suffix else next((form for form, known in FORMS.items() if suffix in known), "")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacking `.gz` and `.zst`."""
    if path.suffix.lower() in PACKED:
        import pyarrow as pa

        kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix.lower()]
        with pa.input_stream(str(path), compression=kind) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    else:
        with open(path, "rb") as plain:
            yield plain


def local_files(corpus: str) -> dict[Path, str]:
    """The files behind a path, a directory or a glob, sorted, each with its split. Empty where nothing has that name.

    Names that begin with a dot or an underscore are left out, unless they are written out. Links to directories are
    followed. The split is "" for a single file, and where all files are of the same split: then nothing is said.
    Errors: `UserError` where nothing is left, for a link to nowhere, and where some files are of no split.
    """
    path = Path(corpus).expanduser()
    if corpus and path.is_dir():  # an empty name is no other name for the working directory
        files = sorted(_files_below(path))
        if not files:
            raise UserError(f"corpus {corpus} is a directory without files; put text, JSON lines or Parquet into it")
        return _listed(path, files) or _by_name(path, files, whole=True)
    if path.is_file():
        return {path: ""}
    files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
    named = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), 0)
    fixed, pattern = Path(*path.parts[:named]), Path(*path.parts[named:])
    kept = [file for file in files if _hidden(pattern) or not _hidden(file.relative_to(fixed))]
    if files and not kept:
        raise UserError(f"corpus {corpus} matches only {files[0]} and the like, which are hidden; rename them")
    found = _by_name(fixed, kept)
    return found if len(set(found.values())) > 1 else dict.fromkeys(found, "")


def _files_below(root: Path) -> Iterator[Path]:
    """The files below a directory. Each directory is read once, so that a link which leads back does no harm."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        stat = Path(folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = sorted(name for name in below if not _hidden(Path(name)))
        for file in (Path(folder, name) for name in names if not _hidden(Path(name))):
            if file.is_file():
                yield file
            elif file.is_symlink() and not file.exists():
                raise UserError(f"corpus {root} holds a link to nowhere, {file}; mend it or remove it")


def _hidden(path: Path) -> bool:
    """Whether a path is no data: its name begins with a dot or an underscore, the custom of Hadoop, Spark and Arrow.

    What the datasets library writes beside its Arrow files is no data either.
    """
    cached = path.match("cache-*.arrow")
    return cached or path.name in ABOUT_DATA or any(part.startswith((".", "_")) for part in path.parts)


# --- The splits of a folder ------------------------------------------------------------------------------------------


def _by_name(root: Path, files: list[Path], whole: bool = False) -> dict[Path, str]:
    """The splits of files by their names below `root`, read as the datasets library reads them.

    That library leaves out a file without a split, and says nothing. Here such a file is an error beside files to
    train on, and otherwise it is for training. Texts about a folder are left out beside data. `whole` says that the
    files are all of a folder: then lines and tables beside those of a train split are an error as well.
    """
    data = _without_about(files)
    records = [file for file in data if form(file) in ("lines", "table")]
    splits = {file: _split_in(file.relative_to(root)) for file in data}
    own = next((file for file, split in splits.items() if split not in ("", "train")), None)
    judged = data if own else records if whole else []
    other = next((file for file in judged if not splits[file] and form(file)), None)
    if other and "train" in map(splits.__getitem__, judged):
        shown = own or next(file for file in judged if splits[file])
        raise UserError(
            f"corpus {root} has splits of its own, such as {shown.relative_to(root)}, and {other.relative_to(root)} is "
            "in none of them; move it out, name it after its split, or give the files to train on as a glob"
        )
    if not own:
        return dict.fromkeys(data if records else files, "")
    return {file: split or "train" for file, split in splits.items()}


def _without_about(files: list[Path]) -> list[Path]:
    """The files without those that only tell about the folder: texts with the name README, LICENSE or the like."""
    return [
        file
        for file in files
        if file.name.split(".")[0].lower() not in ABOUT_FOLDER or form(file) in ("lines", "table")
    ]


def _split_in(path: Path) -> str:
    """The split that the folders of a path say, else its file name; of two the one that is farther from training."""
    for parts in (path.parts[:-1], path.parts[-1:]):
        words = [word for part in parts for word in SPLIT_WORD.findall(part)]
        if words:
            return farthest(*map(split_named, words))
    return ""


def _listed(root: Path, files: list[Path]) -> dict[Path, str]:
    """The splits of a folder whose README.md lists its files, as data sets of the hub do. Empty where it lists none.

    Files that it does not list are left out, and so are splits of other names. Where it lists no other, the names of
    the files say it. Errors: `UserError` where they do not, and where there are files of several subsets.
    """
    found, unknown = {}, None
    for name, patterns in _subsets(root).items():
        splits: dict[Path, str] = {}
        for split, pattern in patterns:
            below = {root / name for name in glob.glob(pattern, root_dir=root, recursive=True)}
            for file in filter(below.__contains__, _without_about(files)):
                says = _split_in(file.relative_to(root))
                named = says or "train" if split is None else split
                splits |= {file: farthest(splits.get(file, ""), named)} if named else {}
                unknown = unknown if named or says else file
        if splits:
            found[name] = splits
    if unknown and not found:
        raise UserError(
            f"README.md of corpus {root} lists {unknown.relative_to(root)} in a split that is none of "
            f"{', '.join(NAMED)}; mend that, or give the files to train on as a glob"
        )
    if len({tuple(splits.items()) for splits in found.values()}) > 1:
        raise UserError(
            f"corpus {root} holds several subsets (README.md lists {', '.join(found)}); give one of them as a glob, or "
            "move the folder to $STAGECRAFT_HUB/OWNER/NAME and give OWNER/NAME:SUBSET"
        )
    splits = next(iter(found.values()), {})
    return splits if set(splits.values()) != {"train"} else dict.fromkeys(splits, "")


def _subsets(root: Path) -> dict[str, list[tuple[str | None, str]]]:
    """The subsets in the head of a folder's README.md, each with splits and patterns of files."""
    card = root / "README.md"
    if not card.is_file() or "\nconfigs:" not in card.read_text(errors="replace"):
        return {}
    from huggingface_hub import metadata_load

    try:
        configs: list[JsonObject] = (metadata_load(card) or {}).get("configs") or []
        return {str(each["config_name"]): _patterns(each) for each in configs}
    except Exception as error:  # several libraries are behind it, each with errors of its own
        reason = " ".join(str(error).split())
        raise UserError(f"the list of subsets in {card} cannot be read ({reason}); mend it or remove it") from None


def _patterns(config: JsonObject) -> list[tuple[str | None, str]]:
    """Splits and patterns of one subset. The split is "" if we do not know it, and None if the file names say it.

    `data_files` is a pattern, a list of patterns, or patterns by split.
    """
    folder, said = config.get("data_dir", ""), config.get("data_files", "**" if "data_dir" in config else [])
    if isinstance(said, dict):
        said = [{"split": split, "path": path} for split, path in said.items()]
    found: list[tuple[str | None, str]] = []
    for each in _list(said):
        split, paths = (split_named(each["split"]), each["path"]) if isinstance(each, dict) else (None, each)
        found += [(split, str(Path(folder, str(path)))) for path in _list(paths)]
    return found


def _list(said: object) -> list[object]:
    return said if isinstance(said, list) else [said]
