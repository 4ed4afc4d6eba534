import json
from collections import Counter
from pathlib import Path

import pytest

from data.corpus.corpora import documents
from data.corpus.files import local_files
from data.corpus.splitting import split_of

TEXTS = ["one", "two", "three"]


def test_directories_and_globs(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)
    for hidden in (".hidden", "_work", ".git/config", "_cleaning/report.json", "state.json"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("no")
    assert [document.text for document in documents(str(tmp_path))] == TEXTS
    assert [document.text for document in documents(str(tmp_path / "[12].txt"))] == TEXTS[1:]


def test_a_wildcard_does_not_stand_for_hidden_names(tmp_path: Path) -> None:
    for name in ("_corpus/a.txt", "_corpus/_work.txt", "_corpus/_logs/b.txt", "_corpus/in/c.txt", "_corpus/state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("some")
    corpus = tmp_path / "_corpus"  # said in so many words

    def names(pattern: str) -> list[str]:
        return [str(path.relative_to(corpus)) for path in local_files(str(corpus / pattern))]

    assert names("**/*") == names(".") == ["a.txt", "in/c.txt"]
    assert names("*") == ["a.txt"] and names("*/*.txt") == ["in/c.txt"]
    assert names("_*.txt") == ["_work.txt"] and names("_lo*/*") == ["_logs/b.txt"]
    with pytest.raises(ValueError, match=r"matches only .*/state\.json and the like, which are hidden; rename them"):
        names("*.json")


def test_linked_directories_are_read_once(tmp_path: Path) -> None:
    corpus, away = tmp_path / "corpus", tmp_path / "away"
    for path, text in ((corpus / "own" / "a.txt", "own"), (away / "deep" / "b.txt", "linked"), (away / "_c.txt", "no")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (corpus / "linked").symlink_to(away)
    (corpus / "linked-too").symlink_to(away)
    (corpus / "_hidden").symlink_to(away)
    (away / "deep" / "back").symlink_to(corpus)
    assert [document.text for document in documents(str(corpus))] == ["linked", "own"]
    assert [*local_files(str(corpus))] == [corpus / "linked" / "deep" / "b.txt", corpus / "own" / "a.txt"]
    (corpus / "lost.txt").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=rf"holds a link to nowhere, {corpus}/lost\.txt; mend it or remove it"):
        local_files(str(corpus))


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    with pytest.raises(ValueError, match="directory without files"):
        local_files(str(tmp_path))


def touch(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def splits(corpus: Path | str, root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): split for path, split in local_files(str(corpus)).items()}


@pytest.mark.parametrize(
    "found",
    [
        {  # as it is downloaded from the hub
            "data/test-00000-of-00001.parquet": "test",
            "data/train-00000-of-00001.parquet": "train",
            "data/validation-00000-of-00001.parquet": "validation",
        },
        {"test/data-0.arrow": "test", "train/data-0.arrow": "train", "validation/data-0.arrow": "validation"},
        {"dev.jsonl.gz": "validation", "train.jsonl.gz": "train"},
        {"en/Eval/a.txt": "test", "en/training_2/a.txt": "train", "en/val/a.txt": "validation"},
        {"c4-train.00000-of-00512.json.gz": "train", "c4-validation.00000-of-00008.json.gz": "validation"},
        {"squad testing 2.jsonl": "test", "train1.jsonl": "train"},
        {"test/train.jsonl": "test", "train/test.jsonl": "train"},  # folders say it before names do
        {"a.jsonl": "train", "b.jsonl": "train", "test.jsonl": "test"},  # what names no split is not held out
        {"test-train.jsonl": "test", "train.jsonl": "train"},
        {"test.txt": "test"},
        # And where there is nothing to tell apart, the text of a document decides.
        {"a.jsonl": "", "b.txt": ""},
        {"a.txt": "", "my-train-notes.txt": ""},
        {"contest.txt": "", "latest.txt": "", "medieval/a.txt": "", "trainer.txt": ""},
        {"train-0.jsonl": "", "train-1.jsonl": ""},
        {"LICENSE": "", "README.md": "", "a.txt": ""},
    ],
)
def test_files_of_a_folder_belong_to_the_splits_that_they_name(found: dict[str, str], tmp_path: Path) -> None:
    touch(tmp_path, [*found])
    assert splits(tmp_path, tmp_path) == found
    touch(tmp_path, ["dataset_infos.json", "train/cache-1f.arrow"])
    if any(found.values()) or "a.jsonl" in found:  # beside data these are no texts to train on
        touch(tmp_path, ["README.md", "LICENSE"])
    assert splits(tmp_path, tmp_path) == found


def test_what_is_named_in_so_many_words_is_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, ["train-0.jsonl", "train-1.jsonl", "test.jsonl", "test/a.jsonl", "README.md"])
    for name in ("train-*", "test.jsonl", "test", "te*/*", "test*"):
        assert set(splits(tmp_path / name, tmp_path).values()) == {""}, name
    assert splits(tmp_path / "*", tmp_path) == {
        "test.jsonl": "test",
        "train-0.jsonl": "train",
        "train-1.jsonl": "train",
    }


def test_a_file_of_no_split_beside_files_to_train_on_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["data/train-0.parquet", "data/test-0.parquet", "data/unsupervised-0.parquet", "data/figure.png"])
    words = (
        r"has splits of its own, such as data/test-0.parquet, and data/unsupervised-0.parquet is in none of them; move"
    )
    with pytest.raises(ValueError, match=words):
        local_files(str(tmp_path))


def test_a_held_out_file_of_another_name_is_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, ["train.jsonl", "holdout.jsonl", "train_gpt.py", "README.md"])
    with pytest.raises(ValueError, match=r"such as train\.jsonl, and holdout\.jsonl is in none of them; move"):
        local_files(str(tmp_path))
    assert {*splits(tmp_path / "*.jsonl", tmp_path)} == {"train.jsonl", "holdout.jsonl"}  # it was named
    (tmp_path / "holdout.jsonl").unlink()
    assert splits(tmp_path, tmp_path) == {"train.jsonl": "", "train_gpt.py": ""}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"data_files": "a/m*"}, {"a/main.jsonl": "", "a/more.jsonl": ""}),
        ({"data_files": [{"split": "train", "path": ["a/m*"]}]}, {"a/main.jsonl": "", "a/more.jsonl": ""}),
        ({"data_dir": "b"}, {"b/test.jsonl": "test", "b/x.jsonl": "train"}),
        ({"data_files": {"dev": "b/x*", "train": "b/*"}}, {"b/test.jsonl": "train", "b/x.jsonl": "validation"}),
        (
            {
                "data_dir": "a",
                "data_files": [
                    {"split": "train", "path": ["main.*"]},
                    {"split": "eval", "path": "held.*"},
                    {"split": "extra", "path": "more.*"},
                ],
            },
            {"a/held.jsonl": "test", "a/main.jsonl": "train"},
        ),
    ],
)
def test_a_data_set_s_readme_says_its_files(config: dict[str, object], found: dict[str, str], tmp_path: Path) -> None:
    touch(tmp_path, ["a/main.jsonl", "a/held.jsonl", "a/more.jsonl", "b/x.jsonl", "b/test.jsonl"])
    elsewhere = {"config_name": "elsewhere", "data_files": "c/*"}  # whose files were not downloaded
    write_card(tmp_path, [{"config_name": "one", **config}, elsewhere])
    assert splits(tmp_path, tmp_path) == found


def test_a_readme_of_unknown_splits_only_is_no_leave_to_train_on_all(tmp_path: Path) -> None:
    touch(tmp_path, ["main.jsonl", "held.jsonl"])
    listed = [{"split": "main", "path": "m*"}, {"split": "held", "path": "h*"}]
    write_card(tmp_path, [{"config_name": "one", "data_files": listed}])
    with pytest.raises(ValueError, match=r"lists held\.jsonl in a split that is none of train, training, validation"):
        local_files(str(tmp_path))
    (tmp_path / "main.jsonl").rename(tmp_path / "train_main.jsonl")
    (tmp_path / "held.jsonl").rename(tmp_path / "test_held.jsonl")
    listed = [{"split": "train_main", "path": "tr*"}, {"split": "test_held", "path": "te*"}]
    write_card(tmp_path, [{"config_name": "one", "data_files": listed}])
    assert splits(tmp_path, tmp_path) == {"test_held.jsonl": "test", "train_main.jsonl": "train"}


def write_card(folder: Path, configs: list[dict[str, object]]) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# A set\n")


def test_a_folder_of_several_subsets_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["en/train.jsonl", "de/train.jsonl"])
    write_card(tmp_path, [{"config_name": name, "data_dir": name} for name in ("en", "de")])
    words = r"holds several subsets \(README.md lists en, de\); give one of them as a glob"
    with pytest.raises(ValueError, match=words):
        local_files(str(tmp_path))
    (tmp_path / "README.md").write_text("---\na: [\nconfigs:\n---\n")
    with pytest.raises(ValueError, match=r"list of subsets in .*README\.md cannot be read \(.*\); mend it"):
        local_files(str(tmp_path))


@pytest.mark.parametrize("saved", ["downloaded", "to disk"])
def test_nothing_of_a_data_set_s_test_split_is_trained_on(saved: str, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    sizes = {"train": 200, "validation": 30, "test": 31}
    data = DatasetDict(
        {split: Dataset.from_dict({"text": [f"{split} {i}" for i in range(rows)]}) for split, rows in sizes.items()}
    )
    if saved == "to disk":
        data.save_to_disk(tmp_path)
    else:
        touch(tmp_path, ["README.md", "LICENSE"])
        for split, rows in data.items():
            (tmp_path / "data").mkdir(exist_ok=True)
            rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = Counter(
        (split_of(document, document.text.encode()), document.text.split()[0]) for document in documents(str(tmp_path))
    )
    assert found == {(split, split): rows for split, rows in sizes.items()}
