import filecmp
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from data.cleaning import clean as cleaning
from data.cleaning.clean import ABOUT, clean
from data.cleaning.stages import DEFAULT, Settings
from data.corpus.corpora import documents
from recipes.registry import ROOT
from tests.patience import ended, wait_until

ALL = ("default", "language:en", "near:0.8")


def prose(seed: int, count: int = 120) -> str:
    """Different English-looking words in lines."""
    random = np.random.default_rng(seed)
    vocabulary = ["the", "and", "of", "to", "king", "house", "water", "morning", "people", "little", "river", "between"]
    words = [f"{random.choice(vocabulary)} {random.choice(vocabulary)}{random.integers(1000)}" for _ in range(count)]
    return "\n".join(" ".join(words[i : i + 6]) for i in range(0, count, 6)) + "\n"


def write(path: Path, texts: list[str], **fields: str) -> str:
    path.write_text("".join(json.dumps({"text": text, **fields}) + "\n" for text in texts))
    return str(path)


def read(folder: Path) -> list[str]:
    return [document.text for document in documents(str(folder))]


def stage(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in report["stages"] if entry["stage"].partition(":")[0] == name)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "CHUNK_CHARACTERS", 4000)


def test_what_is_dropped_is_counted_and_shown(tmp_path: Path) -> None:
    texts = [prose(1), "too short", prose(2), prose(1), prose(2).replace("river", "stream", 1), prose(3) + " Ã©tÃ©"]
    report = clean(Settings(write(tmp_path / "a.jsonl", texts)), tmp_path / "out")
    assert read(tmp_path / "out") == [prose(1), prose(2), prose(3) + " été"]
    assert (report["documents_read"], report["documents_kept"]) == (6, 3)
    assert report["bytes_read"] == sum(len(text.encode()) for text in texts)
    assert report["bytes_read"] - report["bytes_kept"] == sum(entry["bytes_removed"] for entry in report["stages"])
    dropped = {entry["stage"]: (entry["dropped"], entry["changed"]) for entry in report["stages"]}
    assert dropped == {
        "unicode": (0, 1), "gopher-quality": (1, 0), "gopher-repetition": (0, 0), "exact": (1, 0), "near": (1, 0)
    }  # fmt: skip
    assert stage(report, "gopher-quality")["rules"] == {"not 50 to 100,000 words": 1}
    names = [document.name for document in documents(str(tmp_path / "a.jsonl"))]
    about = tmp_path / "out" / ABOUT
    assert json.loads((about / "report.json").read_text()) == report
    samples = {path.stem: json.loads(path.read_text()) for path in about.glob("*.jsonl")}
    assert samples["gopher-quality"] == {
        "name": names[1], "rule": "not 50 to 100,000 words", "detail": "2 words", "text": "too short"
    }  # fmt: skip
    assert samples["exact"]["detail"] == f"like {names[0]}" and samples["exact"]["text"] == prose(1)
    assert (samples["near"]["name"], samples["near"]["detail"]) == (names[4], f"like {names[2]}")
    assert "Ã©tÃ©" in samples["unicode"]["text"]


def many(path: Path) -> str:
    """Sixty documents, with duplicates far from each other and of every fate."""
    texts = [prose(seed % 25) for seed in range(40)]
    texts += ["short"] * 5 + [prose(seed).replace("king", "queen", 1) for seed in range(10)]
    texts += [f"Straße {prose(100 + seed)} dÃ©jÃ" for seed in range(5)]
    return write(path, texts)


def assert_same(one: Path, two: Path) -> None:
    compared = filecmp.dircmp(one, two)
    assert not compared.left_only and not compared.right_only
    names = [str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()]
    assert len(names) > 3
    assert filecmp.cmpfiles(one, two, names, shallow=False)[1:] == ([], [])


@pytest.mark.usefixtures("small_chunks")
def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    settings = Settings(many(tmp_path / "a.jsonl"), (*ALL, f"decontaminate:{write(tmp_path / 'e.jsonl', [prose(3)])}"))
    report = clean(settings, tmp_path / "one", workers=1)
    clean(settings, tmp_path / "three", workers=3)
    assert len(report["evaluation"]["found"]) == 1
    assert len(list((tmp_path / "one").glob("part-*"))) > 5
    assert_same(tmp_path / "one", tmp_path / "three")


def test_duplicates_are_found_across_chunks(tmp_path: Path, small_chunks: None) -> None:
    report = clean(Settings(many(tmp_path / "a.jsonl"), ("exact", "near")), tmp_path / "out")
    kept = read(tmp_path / "out")
    assert stage(report, "exact")["dropped"] == 15 + 4 and stage(report, "near")["dropped"] == 10
    assert kept[:25] == [prose(seed) for seed in range(25)]
    assert len(kept) == len(set(kept)) == 25 + 1 + 5


class StopError(Exception):
    pass


def stop_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    made = []

    def counted(*arguments: Any) -> Any:
        if len(made) == calls:
            raise StopError
        made.append(arguments)
        return function(*arguments)

    return counted


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("step", ["_filter_chunk", "_finish_chunk", "_decide", "_finish"])
def test_what_was_interrupted_goes_on_to_the_same_end(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(many(tmp_path / "a.jsonl"))
    clean(settings, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(cleaning, step, stop_after(3 if "chunk" in step else 0, getattr(cleaning, step)))
        with pytest.raises(StopError):
            clean(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").rglob("part-*") if p.suffix != ".zst"}
    assert done
    kept: dict[Path, int] = {}
    with monkeypatch.context() as patched:

        def look(*arguments: Any) -> Any:
            kept.update({p: p.stat().st_mtime_ns for p in done})
            return finish(*arguments)

        finish = cleaning._finish
        patched.setattr(cleaning, "_finish", look)
        clean(settings, tmp_path / "out")
    assert kept == done  # nothing was done twice
    assert_same(tmp_path / "whole", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / "_work").exists()


def test_killed_while_at_work(tmp_path: Path) -> None:
    """SIGKILL of the parent: its processes end too, and the same command goes on."""
    corpus = write(tmp_path / "a.jsonl", [prose(seed, 600) for seed in range(120)])
    code = (
        "import sys; from pathlib import Path; from data.cleaning import clean, stages\n"
        "clean.CHUNK_CHARACTERS = 50_000\n"
        "if __name__ == '__main__':\n"
        "    clean.clean(stages.Settings(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), corpus]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, str(tmp_path / "out")], env=environment)
    tallies = partial((tmp_path / "out.partial").rglob, "*.tally.json")
    wait_until(lambda: len(list(tallies())) >= 2 or process.poll() is not None, process.pid)
    assert process.poll() is None
    children = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: all(map(ended, children)), *children)
    for name in ("out", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=environment, check=True)
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_overlap_with_evaluation_texts_is_cut_out_after_duplicates(tmp_path: Path) -> None:
    """The same overlap in eleven copies of a document is in one document, not a common phrase."""
    question = " ".join(f"question{i}" for i in range(14))
    polluted = prose(1) + question + "\n" + prose(2)
    phrase = " ".join(f"licence{i}" for i in range(14))
    licensed = [f"{prose(20 + seed)}{phrase}\n" for seed in range(11)]
    corpus = write(tmp_path / "a.jsonl", [*[polluted] * 11, *licensed, question])
    against = write(tmp_path / "e.jsonl", [question, phrase, "too short"])
    report = clean(Settings(corpus, ("exact", f"decontaminate:{against}")), tmp_path / "out")
    kept = read(tmp_path / "out")
    assert kept[2:] == licensed
    assert kept[0] == polluted[: polluted.index(question) - 200]
    assert kept[1] == polluted[polluted.index(question) + len(question) + 200 :]
    entry = stage(report, "decontaminate")
    assert (entry["dropped"], entry["changed"], entry["rules"]) == (1, 1, {"nothing left": 1})
    assert stage(report, "exact")["dropped"] == 10
    found = report["evaluation"]["found"]
    assert [(each["number"], each["documents"], each["cut_from"]) for each in found] == [(1, 2, 2), (2, 11, 0)]
    assert found[1]["name"] == [document.name for document in documents(against)][1]
    assert json.loads((tmp_path / "out" / ABOUT / "report.json").read_text()) == report


def test_splits_survive(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [prose(1)], split="train")
    write(tmp_path / "b.jsonl", [prose(2)], split="valid")
    write(tmp_path / "c.jsonl", [prose(3)], split="")
    clean(Settings(str(tmp_path / "*.jsonl"), ("unicode",)), tmp_path / "out")
    assert [d.split for d in documents(str(tmp_path / "out"))] == ["train", "validation", ""]


def test_what_cannot_be_read_is_skipped_and_counted_where_asked(tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.jsonl", [prose(1), prose(2)])
    with open(corpus, "a") as stream:
        stream.write("not json\n")
    report = clean(Settings(corpus, ("exact",), skip=True), tmp_path / "out")
    assert report["unreadable"] == {"not JSON": 1} and report["documents_kept"] == 2


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("unicod",), "no cleaning stage 'unicod'; did you mean unicode"),
        (("xyz",), "there are default, unicode, language"),
        ((), "no cleaning stage is given"),
        (("exact:1",), "exact takes no argument"),
        (("near:0.5",), "similarity from 0.7 to 1"),
        (("near:high",), "similarity from 0.7 to 1"),
        (("language",), r"write for example language:en\+de"),
        (("language:english",), "'english' is no code of a language"),
        (("decontaminate",), "needs evaluation texts"),
        (("exact", "near:0.8", "near:0.9"), "near is given twice"),
    ],
)
def test_stages_that_there_are_not(stages: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings("shakespeare", stages)


def test_stages_run_in_their_order_and_default_can_be_changed() -> None:
    assert Settings("a", ("exact", "unicode")).stages == ("unicode", "exact")
    assert Settings("a", ("default", "near:0.9")).stages == (*DEFAULT[:-1], "near:0.9")
    assert Settings("a").stages == DEFAULT


@pytest.mark.parametrize(
    ("content", "stages", "words"),
    [
        ("\n\n", ("exact",), "holds no text"),
        ('{"text": "too short"}\n', ("gopher-quality",), "all 1 documents of .* by gopher-quality.*not 50 to 100,000"),
        ('{"text": "fine"}\n{"text": \n', ("exact",), "line 2 is not JSON"),
        ('{"text": "fine"}\n', ("decontaminate:EVALS",), "no text of 8 words to decontaminate against"),
        ('{"text": "fine"}\n', ("decontaminate:NONE",), "does not exist"),
    ],
)
def test_input_that_will_not_do_leaves_nothing(
    content: str, stages: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    evals = write(tmp_path / "evals.jsonl", ["only a few words"])
    chosen = tuple(s.replace("EVALS", evals).replace("NONE", str(tmp_path / "none.jsonl")) for s in stages)
    with pytest.raises(ValueError, match=words):
        clean(Settings(str(tmp_path / "a.jsonl"), chosen), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "evals.jsonl"]


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    settings = Settings(write(tmp_path / "in" / "a.jsonl", [prose(1), prose(2)]), ("exact",))
    with pytest.raises(ValueError, match="exists; remove it"):
        clean(settings, tmp_path / "in")
    with pytest.raises(ValueError, match="lies inside the corpus"):
        clean(Settings(str(tmp_path / "in"), ("exact",)), tmp_path / "in" / "out")
    with pytest.raises(ValueError, match="give at least 1"):
        clean(settings, tmp_path / "out", workers=0)


@pytest.mark.usefixtures("small_chunks")
def test_work_of_other_settings_or_files_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = many(tmp_path / "a.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(cleaning, "_finish", stop_after(0, cleaning._finish))
        with pytest.raises(StopError):
            clean(Settings(corpus), tmp_path / "out")
    with pytest.raises(ValueError, match="begun with other settings"):
        clean(Settings(corpus, ("exact",)), tmp_path / "out")
    with open(corpus, "a") as stream:
        stream.write('{"text": "one more"}\n')
    with pytest.raises(ValueError, match=r"out\.partial was begun with other settings or files"):
        clean(Settings(corpus), tmp_path / "out")


def test_a_full_disk_is_said_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the disk: Python ignores the signal, and the write is refused."""
    import resource

    corpus = write(tmp_path / "a.jsonl", [prose(seed, 600) for seed in range(40)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            ValueError, match=r"no room left to write .*out\.partial: File too large; .* what is finished is kept"
        ):
            clean(Settings(corpus), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    clean(Settings(corpus), tmp_path / "out")
    assert len(read(tmp_path / "out")) == 40


def test_two_cleanings_do_not_meet_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(write(tmp_path / "a.jsonl", [prose(1)]))

    def meet(*arguments: Any) -> Any:
        with pytest.raises(ValueError, match="another process is cleaning"):
            clean(settings, tmp_path / "out")
        return decide(*arguments)

    decide = cleaning._decide
    monkeypatch.setattr(cleaning, "_decide", meet)
    clean(settings, tmp_path / "out")
    assert read(tmp_path / "out") == [prose(1)]


def test_a_cleaned_folder_is_found_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_HUB", str(tmp_path))
    copy = tmp_path / "some" / "set" / "train.jsonl"
    copy.parent.mkdir(parents=True)
    write(copy, [prose(1), prose(2)])
    settings = Settings("some/set", ("exact",))
    made = cleaning.cleaned(settings, tmp_path / "out")
    assert read(made) == [prose(1), prose(2)]

    def away(*_: Any) -> Any:
        raise ValueError("data set some/set cannot be read from the hub")

    with monkeypatch.context() as patched:
        patched.setattr(cleaning.corpora, "hub_pieces", away)
        assert cleaning.cleaned(settings, tmp_path / "out") == made
    write(copy, [prose(1), prose(2), prose(3)])
    assert read(cleaning.cleaned(settings, tmp_path / "out")) == [prose(1), prose(2), prose(3)]


def test_a_cleaned_folder_that_lacks_what_was_skipped_is_not_taken_where_nothing_is_to_be(tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.jsonl", [prose(1)])
    with open(corpus, "a") as stream:
        stream.write("not json\n")
    skip, stop, either = (Settings(corpus, ("exact",), skip) for skip in (True, False, None))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        cleaning.cleaned(either, tmp_path / "out")
    lacking = cleaning.cleaned(skip, tmp_path / "out")
    assert cleaning.cleaned(either, tmp_path / "out") == lacking
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        cleaning.cleaned(stop, tmp_path / "out")
