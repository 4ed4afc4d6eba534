"""What is done with a text by name, held against what one would do by hand."""

import json
from pathlib import Path

import pytest

from commands import generate as command
from inference import generate
from inference.postprocess import STEPS, tidied
from inference.sampling import Sampling

CASES = [
    ("sentence", " He went. She st", " He went."),
    ("sentence", " He went. She stayed.", " He went. She stayed."),
    ("sentence", " no end here, none", " no end here, none"),
    ("sentence", "", ""),
    ("sentence", ' She said "Go!" Then sh', ' She said "Go!"'),
    ("sentence", ' "What?" he asked and we', ' "What?" he asked and we'),
    ("sentence", " (It was late.) The d", " (It was late.)"),
    ("sentence", " It costs 3.5 and Mr. Smith", " It costs 3.5 and Mr. Smith"),
    ("sentence", " So did I. And J. S. Bach wr", " So did I."),
    ("sentence", " Well ... perhaps. Or n", " Well ... perhaps."),
    ("sentence", " Do this:\n1. Sit\n2. St", " Do this:\n1. Sit\n2. St"),
    ("sentence", "他来了。她走了！然后", "他来了。她走了！"),
    ("sentence", "他说：“好吗？”她没", "他说：“好吗？”"),
    ("repeats", " I know it well now. I know it  well now. Go.", " I know it well now. Go."),
    ("repeats", " No. No. No. Yes. No.", " No. Yes. No."),
    (
        "repeats",
        "\nROMEO\nI do love thee so.\nROMEO\nI do love thee so.\nAnd on",
        "\nROMEO\nI do love thee so.\nROMEO\nAnd on",
    ),
    ("repeats", "a b c d. E f g h.\na b c d. New one here now.\n", "a b c d. E f g h.\nNew one here now.\n"),
    ("repeats", "他来了我们走吧。他来了我们走吧。好。", "他来了我们走吧。好。"),
    ("repeats", "***\n***\n\n\n", "***\n***\n\n\n"),
    (
        "repeats",
        "for i in range(10):\n    go()\n    go()\nfor i in range(10):",
        "for i in range(10):\n    go()\n    go()\nfor i in range(10):",
    ),
    ("spaces", " word  word , and ( this ) one .  ", " word word, and (this) one."),
    ("spaces", ' "Go !" he said ; then ... stopped .', ' "Go!" he said; then ... stopped.'),
    ("spaces", " 3 . 5 and 1 , 2 in 1999 .", " 3 . 5 and 1 , 2 in 1999."),
    ("spaces", " a . . . b and .txt and :) [ ] x", " a . . . b and .txt and :) [ ] x"),
    ("spaces", "a\n\n\n\nb  \n\n c", "a\n\nb\n\n c"),
    ("spaces", "x  = {a , b}\n    return  x ;\nuse  it", "x  = {a , b}\n    return  x ;\nuse it"),
    ("spaces", "```\na  b , c\n```\na  b , c", "```\na  b , c\n```\na b, c"),
    ("spaces", "他来了 ，走了 。", "他来了，走了。"),
]


@pytest.mark.parametrize(("name", "text", "wanted"), CASES)
def test_a_text_by_hand(name: str, text: str, wanted: str) -> None:
    assert tidied(text, [name]) == wanted
    assert tidied(wanted, [name]) == wanted  # what is tidy stays


def test_steps_act_in_their_order() -> None:
    text = " One two three four . One two three four. And"
    assert tidied(text, ["spaces", "repeats", "sentence"]) == " One two three four."
    assert tidied(text, ["repeats", "sentence", "spaces"]) == " One two three four. One two three four."


def test_samples_are_tidied_and_the_raw_ones_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = generate.generate(run, "the cat", Sampling(samples=3, bias=((" ", 4.0),)))
    how = Sampling(samples=3, bias=((" ", 4.0),), tidy=tuple(STEPS))
    values = generate.generate(run, "the cat", how, stream=True)
    assert "raw_samples" not in plain and values["raw_samples"] == plain["samples"] != values["samples"]
    wanted = ["the cat" + tidied(text.removeprefix("the cat"), list(STEPS)) for text in plain["samples"]]
    assert values["samples"] == wanted
    shown = "".join(f"--- sample {n + 1} (seed {n})\n{text}\n" for n, text in enumerate(wanted))
    assert capsys.readouterr().out == shown
    ranked = generate.generate(run, "the cat", how, by="likelihood")
    assert sorted(ranked["samples"]) == sorted(wanted)
    pairs = set(zip(values["raw_samples"], values["samples"], strict=True))
    assert set(zip(ranked["raw_samples"], ranked["samples"], strict=True)) == pairs


def test_the_flag_takes_names(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["generate", "--run", str(run), "--prompt", "the", "--json", "--tidy"]
    monkeypatch.setattr("sys.argv", [*flags, "spaces, sentence"])
    command.main()
    assert "raw_samples" in json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", [*flags, "space"])
    with pytest.raises(SystemExit):
        command.main()
    error = "error: --tidy must be names of sentence, repeats, spaces, with commas between them\n"
    assert capsys.readouterr().err == error
