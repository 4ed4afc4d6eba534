from zlib import crc32

from data.taught.rows import LONGEST, Row, part, written


def test_rows_of_a_group_stay_together_and_order_does_not_matter() -> None:
    rows = [written(f"text {n} of its own {n * 77} {n * 13}", " x", f"group {n // 4}") for n in range(400)]
    parted = part(rows)
    splits: dict[str, set[str]] = {}
    for row in parted.rows:
        splits.setdefault(f"group {int(row['prompt'].split()[1]) // 4}", set()).add(row["split"])
    assert len(splits) == 100 and all(len(names) == 1 for names in splits.values())
    assert parted.counts == {"train": 332, "validation": 40, "test": 28} and not parted.left_out
    assert crc32(b"group 0") % 100 == 31 and splits["group 0"] == {"train"}
    assert sorted(map(str, part(rows[::-1]).rows)) == sorted(map(str, parted.rows))


def test_a_held_out_row_that_is_nearly_trained_on_is_left_out() -> None:
    text = " ".join(f"word{n}" for n in range(60))
    other = " ".join(f"other{n}" for n in range(60))
    rows = [
        Row({"prompt": "a"}, "1", text, "train"),
        Row({"prompt": "b"}, "2", f"{text} more", "test"),  # 56 of 57 shingles
        Row({"prompt": "c"}, "3", f"{text} more", "validation"),
        Row({"prompt": "d"}, "4", other, "validation"),
        Row({"prompt": "e"}, "5", other.upper(), "test"),  # nearer to training is validation
        Row({"prompt": "f"}, "6", "all of its own, with some words", "test"),
    ]
    parted = part(rows)
    assert {row["prompt"]: row["split"] for row in parted.rows} == {"a": "train", "d": "validation", "f": "test"}
    assert parted.left_out == {"nearly trained on": 3}


def test_equal_rows_stay_once_and_no_text_is_absurdly_long() -> None:
    rows = [
        Row({"prompt": "a", "gold": 0}, "1", "one text", "train"),
        Row({"prompt": "a", "gold": 0}, "2", "one text", "train"),
        Row({"prompt": "a", "gold": 1}, "3", "one text", "train"),  # another answer
        Row({"prompt": "b"}, "4", "other words", "test"),
        Row({"prompt": "b"}, "5", "other words", "test"),
        Row({"prompt": "c"}, "6", "x" * LONGEST, "train"),
        Row({"prompt": "d"}, "7", "x" * (LONGEST + 1), "train"),
    ]
    parted = part(rows)
    assert sorted((row["prompt"], row.get("gold")) for row in parted.rows) == [
        ("a", 0),
        ("a", 1),
        ("b", None),
        ("c", None),
    ]
    assert parted.left_out == {"equal to another": 2, "too long": 1}


def test_no_rows_are_no_rows() -> None:
    assert part([]).rows == []
