import json
from pathlib import Path

from data.corpus.sources import SPLITS
from tests.commands.running import fail, small, succeed
from tests.data.cleaning.test_clean import prose, write


def corpus(tmp_path: Path) -> str:
    return write(tmp_path / "corpus.jsonl", [*(prose(seed) for seed in range(60)), prose(0), prose(1), "short"])


def test_cleaning_and_what_it_says(tmp_path: Path) -> None:
    shown = succeed(tmp_path, "commands", "clean", corpus(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1")
    assert "kept 60 documents" in shown and "of 63" in shown
    assert "not 50 to 100,000 words (1)" in shown and "duplicate (2)" in shown
    report = json.loads((tmp_path / "out" / "_cleaning" / "report.json").read_text())
    assert f"corpus: {tmp_path / 'out'}" in shown and report["documents_kept"] == 60
    printed = succeed(
        tmp_path, "commands", "clean", corpus(tmp_path), "--out", str(tmp_path / "two"), "--workers", "2", "--json"
    )
    assert json.loads(printed) == report


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    assert "did you mean near?" in fail(tmp_path, "commands", "clean", corpus(tmp_path), *out, "--stages", "nearr")
    assert "does not exist" in fail(tmp_path, "commands", "clean", str(tmp_path / "none.jsonl"), *out)
    assert "exists; remove it" in fail(tmp_path, "commands", "clean", corpus(tmp_path), "--out", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_a_recipe_names_its_cleaning(tmp_path: Path) -> None:
    settings = [*small(Path(corpus(tmp_path))), "data.clean=default,near:0.9"]
    first = json.loads(succeed(tmp_path, "commands", "prepare", "tiny", *settings, "--json"))
    assert sum(first["parts"][0][split]["documents"] for split in SPLITS) == 60
    assert first["parts"][0]["corpus"] == str(tmp_path / "corpus.jsonl")
    said = succeed(tmp_path, "commands", "prepare", "tiny", *settings)
    assert "cleaning" not in said  # a no-op when it is there
    line = fail(tmp_path, "commands", "prepare", "tiny", *settings[:-1], "data.clean=unicode,exakt")
    assert "did you mean exact?" in line
