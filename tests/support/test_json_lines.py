from pathlib import Path

from support import files, json_lines
from support.json_lines import Follower


def test_a_follower_reads_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    follower = Follower(path)
    assert follower.new() == []
    json_lines.add(path, {"a": 1})
    json_lines.add(path, {"a": 2})
    assert follower.new() == [{"a": 1}, {"a": 2}]
    assert follower.new() == []
    json_lines.add(path, {"a": 3})
    assert follower.new() == [{"a": 3}]


def test_a_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    follower = Follower(path)
    with open(path, "w") as stream:
        for piece, lines in (('{"a": ', []), ("1}", []), ('\n{"b": 2}\n{"c"', [{"a": 1}, {"b": 2}])):
            stream.write(piece)
            stream.flush()
            assert follower.new() == lines
    json_lines.add(path, {"d": 4})  # a crash tore {"c": it is no JSON, and is left out
    assert follower.new() == []
    json_lines.add(path, {"e": 5})
    assert follower.new() == [{"e": 5}]


def test_a_file_that_takes_the_place_is_read_from_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    follower = Follower(path)
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert len(follower.new()) == 2
    files.write(path, '{"a": 1}\n{"a": 9}\n{"a": 10}\n')  # by a rename
    assert follower.new() == [{"a": 1}, {"a": 9}, {"a": 10}]
    with open(path, "w") as stream:  # cut in its place
        stream.write('{"a": 0}\n')
    assert follower.new() == [{"a": 0}]
    path.unlink()
    assert follower.new() == []
