"""From a corpus to shards: tokenise every document, append its end-of-document token, write `.bin`/`.idx`.

A prepared folder holds `tokeniser/`, `train.{bin,idx}`, `validation.{bin,idx}` and, written last, `manifest.json`
with what it was made from, its counts and the hashes of its files.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data import corpora
from data.shards import Shard, ShardWriter

SPLITS = ("train", "validation")
CHUNK_DOCUMENTS = 256  # documents encoded together; the tokenizers library spreads them over the cores
TOKENISER_SAMPLE_CHARACTERS = 100_000_000  # a BPE is trained on at most this much of a corpus

Say = Callable[[str], None]


def prepare(corpus: str, tokeniser: str, vocab_size: int, root: Path, say: Say = lambda line: None) -> Path:
    """Make sure that a corpus is prepared with a tokeniser below `root`; return its folder.

    `vocab_size` is how many entries the model has room for. Does nothing where the folder is whole and its local
    sources are unchanged. Safe when several processes arrive together: the first does the work, the others wait.
    Errors: `ValueError` where the corpus cannot be read or the tokeniser has more entries than `vocab_size`.
    """
    source = _source(corpus, tokeniser)
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^\w.-]+", "-", f"{Path(corpus).name}-{Path(tokeniser).name}").strip("-")
    folder = root / f"{slug}-{digest}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "manifest.json").exists():
            scratch = folder.with_name(folder.name + ".partial")
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _build(corpus, tokeniser, vocab_size, source, scratch, say)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    _check_vocabulary(tokeniser, manifest(folder)["vocab_size"], vocab_size)
    return folder


def shared_tokeniser(names: Sequence[str], spec: str, root: Path, say: Say = lambda line: None) -> str:
    """A tokeniser for several corpora: `spec` itself, or where it is to be trained, the folder of one of them all."""
    if len(names) == 1 or not spec.startswith("bpe:"):
        return spec
    sources = [_source(name, spec) for name in names]
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:8]
    folder = root / f"tokeniser-{spec.replace(':', '-')}-{digest}"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            from data import tokenisers

            say(f"tokeniser: {spec} of {len(names)} corpora")
            budget = TOKENISER_SAMPLE_CHARACTERS // len(names)
            trained = tokenisers.obtain(spec, (text for name in names for text in _training_texts(name, budget)))
            scratch = folder.with_name(folder.name + ".partial")
            tokenisers.save(trained, scratch)
            os.replace(scratch, folder)
    return str(folder)


def _check_vocabulary(tokeniser: str, entries: int, vocab_size: int) -> None:
    if entries > vocab_size:
        raise ValueError(
            f"tokeniser {tokeniser} has {entries} entries but the model has room for {vocab_size}; raise "
            "model.vocab_size with --set, or use a smaller tokeniser"
        )


def manifest(folder: Path) -> dict[str, Any]:
    """What a prepared folder says of itself. Errors: `ValueError` where it is none."""
    try:
        result: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{folder} is not a prepared data folder (no manifest.json); prepare the data again") from None
    return result


def check(folder: Path, expected: dict[str, Any] | None = None) -> dict[str, Any]:
    """Check that the shards are the ones the manifest describes, and the same as `expected`, an earlier manifest.

    Sizes are compared always; hashes only between manifests, so that this stays fast. Returns the manifest.
    """
    found = manifest(folder)
    for part in SPLITS:
        shard = Shard(folder / part)
        if shard.num_tokens != found[part]["tokens"]:
            raise ValueError(
                f"shard {folder / part} holds {shard.num_tokens} tokens where the manifest says "
                f"{found[part]['tokens']}; remove {folder} and prepare the data again"
            )
        if expected and found[part]["sha256"] != expected[part]["sha256"]:
            raise ValueError(f"shard {folder / part} changed since the run began; restore it or start a new run")
    return found


def _source(corpus: str, tokeniser: str) -> dict[str, Any]:
    """What identifies the input: names, and for local files their sizes and times of change."""
    files = [] if corpus in corpora.CORPORA else corpora.local_files(corpus)
    stats = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    folder = Path(tokeniser, "tokenizer.json")
    vocabulary = hashlib.sha256(folder.read_bytes()).hexdigest() if folder.is_file() else ""
    return {"corpus": corpus, "files": stats, "tokeniser": tokeniser, "vocabulary_sha256": vocabulary}


def _build(corpus: str, spec: str, vocab_size: int, source: dict[str, Any], folder: Path, say: Say) -> None:
    from data import tokenisers

    say(f"tokeniser: {spec}")
    tokeniser = tokenisers.obtain(spec, _training_texts(corpus))
    _check_vocabulary(spec, len(tokeniser), vocab_size)
    tokenisers.save(tokeniser, folder / "tokeniser")
    end = tokeniser.eos_token_id
    counts = {part: {"documents": 0, "bytes": 0} for part in SPLITS}
    stream = corpora.split(corpora.documents(corpus))
    vocabulary = len(tokeniser)
    with ShardWriter(folder / "train", vocabulary) as train, ShardWriter(folder / "validation", vocabulary) as held:
        writers = dict(zip(SPLITS, (train, held), strict=True))
        while chunk := list(islice(stream, CHUNK_DOCUMENTS)):
            encoded = tokeniser([document.text for document in chunk], add_special_tokens=False)["input_ids"]
            for document, tokens in zip(chunk, encoded, strict=True):
                writers[document.split].add([*tokens, end])
                counts[document.split]["documents"] += 1
                counts[document.split]["bytes"] += len(document.text.encode())
            say(
                f"tokenised {sum(c['documents'] for c in counts.values()):,} documents, "
                f"{sum(c['bytes'] for c in counts.values()) / 1e6:,.1f} MB"
            )
        if not train.num_tokens:
            raise ValueError(f"corpus {corpus} holds no text; give another path")
        if held.num_tokens < 2:
            raise ValueError(f"corpus {corpus} has {held.num_tokens} tokens to validate on; give more text")
    parts = {
        part: {**counts[part], "tokens": Shard(folder / part).num_tokens, "sha256": _digest(folder / part)}
        for part in SPLITS
    }
    described = {"source": source, "vocab_size": vocabulary, "end_of_document": end, **parts}
    (folder / "manifest.json").write_text(json.dumps(described, indent=2) + "\n")


def _training_texts(corpus: str, budget: int = TOKENISER_SAMPLE_CHARACTERS) -> Iterator[str]:
    for document in corpora.split(corpora.documents(corpus)):
        if document.split == "train" and budget > 0:
            budget -= len(document.text)
            yield document.text
        elif budget <= 0:
            return


def _digest(prefix: Path) -> str:
    digest = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        with open(prefix.with_name(prefix.name + suffix), "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
