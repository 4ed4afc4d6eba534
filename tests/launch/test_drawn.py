import io
from pathlib import Path

from launch.drawn import Drawn
from run.state import State
from tests.run.happened import BEGAN, write_run


def test_after_a_resize_all_is_drawn_again(tmp_path: Path) -> None:
    """No terminal says how it broke the panel's lines anew. So the screen is cleared, and the lines come again."""
    stream = io.StringIO()
    drawn = Drawn(stream, State(write_run(tmp_path), BEGAN))
    drawn.console.width = 100
    drawn.draw(["first"])
    drawn.draw(["second"])
    before = stream.getvalue()
    assert "\x1b[2J" not in before and before.count("first") == 1
    drawn.console.width = 60
    drawn.draw(["third"])
    after = stream.getvalue().split("\x1b[2J")[1]
    assert [after.count(line) for line in ("first", "second", "third")] == [1, 1, 1]
    assert after.index("third") < after.rindex("╭")  # the panel stands below the lines
    drawn.draw([])
    assert stream.getvalue().count("\x1b[2J") == 1
    drawn.close(keep=True)
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is there again
