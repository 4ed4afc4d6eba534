"""Translation without pairs: what a dictionary says of a sentence; no paragraph to learn from is in both languages."""

import json
from pathlib import Path
from zlib import crc32

import pytest

from data.taught import unpaired, words
from data.taught.rows import Row, drawn, part
from data.taught.sets import rows_file
from tests.data.taught import tiny

WORDS = {
    "选择": ["to choose; to select", "choice"],
    "文件": ["document; file"],
    "文": ["language; culture"],
    "菜单": ["menu"],
    "的": ["of", "~'s (possessive particle)"],
    "了": ["(completed action marker)"],
    "王": ["surname Wang", "king or monarch", "a word that has far too many words"],
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "dictionary", lambda: [("", word, "", means) for word, means in WORDS.items()])


def test_chinese_is_said_by_the_longest_words_and_their_usual_meanings(known: None) -> None:
    say = words.into_english("Select the file. Select it, or choose another file.")
    assert say("选择「文件 - PDF」的菜单。了，文王打！") == "Select file - PDF of menu., language king or monarch!"
    assert words.into_english("To choose is to choose.")("选择文件（文）") == "Choose document (language)"


def test_english_is_said_by_the_words_that_are_read(known: None) -> None:
    say = words.into_chinese("文件和菜单")
    assert say("Choose the menus of a File, please.") == "选择菜单的文件， please。"


def english_of(page: str) -> str:
    return f"Page {page}: {crc32(page.encode())}"


@pytest.fixture
def help_rows(monkeypatch: pytest.MonkeyPatch, known: None) -> list[Row]:
    pages = [f"text/{number}.html" for number in range(300)]
    rows = [unpaired.written(f"English: {english_of(page)}\n", f" 文{page}", page, english_of(page)) for page in pages]
    # On two pages that are trained on and give another language each: one English in two words, one Chinese of two.
    first, second = (next(page for page in pages if drawn(page) == "train" and half(page) == side) for side in (0, 1))
    rows += [unpaired.written("", f" 菜单{page}", page, "Twice said") for page in (first, second)]
    rows += [
        unpaired.written("", " 菜单的文件", first, "Said on the first"),
        unpaired.written("", " 菜单的文件", second, "Said on the second"),
    ]
    monkeypatch.setattr(unpaired, "help_pages", lambda language: iter(rows))
    return rows


def half(page: str) -> int:
    return crc32(page.encode()) // 100 % 2


def test_no_page_gives_both_languages_but_for_testing(help_rows: list[Row]) -> None:
    chinese, english = list(unpaired.to_chinese()), list(unpaired.to_english())
    learned = [{row.group for row in rows if drawn(row.group) != "test"} for rows in (chinese, english)]
    assert all(len(pages) > 100 for pages in learned) and not learned[0] & learned[1]
    said = {row.content["prompt"] for row in chinese} | {row.content["completion"] for row in chinese}
    for row in help_rows:
        shown = [text for text in said if row.text in text]
        assert bool(shown) == (drawn(row.group) == "test")
    shown = " ".join(str(row.content) for row in english)
    assert "Twice said" not in shown and "Said on the" not in shown  # these are learned in Chinese
    tested = [
        [(row.text, row.group) for row in rows if drawn(row.group) == "test"] for rows in (chinese, english, help_rows)
    ]
    assert tested[0] and tested[0] == tested[1] == tested[2]
    (row,) = (row for row in chinese if row.group == tested[0][0][1])
    assert row.content["prompt"] == f"English: {row.text}\nChinese:" and row.content["completion"] == f" 文{row.group}"


def test_a_paragraph_for_testing_that_is_translated_anew_is_left_out(
    help_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal Chinese one row is learned, and what any of its English says is no test."""
    trained = [row.group for row in help_rows if drawn(row.group) == "train" and not half(row.group)][:2]
    tested = next(row.group for row in help_rows if drawn(row.group) == "test")
    said = (("choose a file", trained[0]), ("open the menu", trained[1]), ("choose a file", tested))
    rows = [unpaired.written("", f" 菜单的{'文件' * (page == tested)}", page, english) for english, page in said]
    monkeypatch.setattr(unpaired, "help_pages", lambda language: iter(rows))
    assert part(unpaired.to_chinese()).left_out == {"nearly trained on": 1, "equal to another": 1}


def test_the_rows_are_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.npm_index(tmp_path / "cache", monkeypatch)
    tiny.apt(tmp_path / "cache", monkeypatch)
    for name, asked in (("zh", "English"), ("en", "Chinese")):
        rows = [json.loads(line) for line in rows_file(f"tune_help_{name}_unpaired").open()]
        assert rows and all(row["prompt"].startswith(f"{asked}: ") for row in rows)
