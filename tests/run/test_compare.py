"""Runs beside each other: what differs, and losses at places that were computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run.compare import compare, differences, loss_scales, plot, remarks, told
from run.overlay import Drawn, curve, draw, picture
from support.errors import UserError
from tests.run import directories

LN2 = math.log(2)


def data(bytes_per_token: float = 3.0, **more: Any) -> dict[str, Any]:
    split = {"documents": 2, "bytes": 300, "tokens": 100, "sha256": more.get("sha256", "a" * 64)}
    source = {"tokeniser": more.get("tokeniser", "bpe:4096")}
    part = {"corpus": "plays", "share": 1, "source": source, "vocab_size": 4096, "train": split, "validation": split}
    return {"bytes_per_token": bytes_per_token, "parts": [part]}


def line(step: int, loss: float | None, samples: int = 10, speed: float = 64.0, **more: Any) -> dict[str, Any]:
    """A step of `samples` sequences of 64 tokens."""
    return {"step": step, "consumed_samples": samples * step, "loss": loss, "tokens_per_second": speed, **more}


def run(
    root: Path, folder: str, lines: list[dict[str, Any]], described: dict[str, Any] | None = None, **more: Any
) -> Path:
    path = directories.run(root, folder, steps=0, **more)
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (path / "data.json").write_text(json.dumps(described or data()))
    return path


def test_a_curve_by_hand(tmp_path: Path) -> None:
    """640 tokens a step: ten seconds at 64 tokens/s, or what the step noted itself. The mean leaves a NaN out."""
    lines = [line(1, 8.0), line(2, None, seconds=5.0), line(3, 6.0, validation_loss=6.5), line(4, 4.0)]
    final = {"step": 4, "consumed_samples": 40, "tokens": 2560, "final_validation_loss": 4.5}
    found = curve(run(tmp_path, "a", [*lines, final]), 64)
    assert found.tokens.tolist() == [640, 1280, 1920, 2560] and found.seconds.tolist() == [10, 15, 25, 35]
    assert (found.evaluations.tolist(), found.held_out.tolist()) == ([2], [6.5])
    assert found.smoothed(1280).tolist() == [8, 8, 6, 5]  # two steps at most
    assert np.isnan(found.smoothed(640)).tolist() == [False, True, False, False]


def test_losses_at_equal_tokens_and_time(tmp_path: Path) -> None:
    """The second run takes steps of twice the tokens at twice the speed. Both have their last common evaluation on a
    straight line between two of the first: 1920 tokens lie halfway between 1280 and 2560."""
    losses = {2: 7.0, 4: 6.0}
    first = [
        line(step, 9.0 - step, **({"validation_loss": losses[step]} if step in losses else {})) for step in range(1, 6)
    ]
    second = [line(1, 8.0, 15, 96.0, validation_loss=7.5), line(2, 5.0, 15, 96.0, validation_loss=5.5)]
    paths = [run(tmp_path, "a", first), run(tmp_path, "b", second), run(tmp_path, "c", [])]
    values = compare(told(paths))
    found = {(each["of"], each["by"]): (each["at"], each["losses"]) for each in values["equal"]}
    assert found["validation", "tokens"] == (1920, [6.5, 5.5, None])
    assert found["validation", "seconds"] == (20, [7.0, 5.5, None])
    assert found["training", "tokens"] == (1920, [6.0, 5.0, None])
    assert found["training", "seconds"] == (20, [7.0, 5.0, None])
    assert values["equal"][0]["bits_per_byte"][:2] == pytest.approx([6.5 / 3 / LN2, 5.5 / 3 / LN2])
    assert [each["speed_ratio"] for each in values["runs"]] == [1.0, 1.5, None]
    assert values["remarks"] == ["c has no finished step"]


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    """A rate of the recipe that the JSON takes over stands once; one that the JSON has of its own stands there."""
    same = run(tmp_path, "a", [line(1, 8.0)])
    assert differences(told([same, same])) == []
    other = run(tmp_path, "b", [line(1, 8.0)], data(sha256="b" * 64), settings=["optimizer.lr=0.001"])
    for path, rate in ((same, 0.003), (other, 0.001)):
        resolved = {"optimizer": {"params": {"lr": rate, "eps": rate}}, "csv_monitor": {"output_path": str(path)}}
        (path / "ds_config.resolved.json").write_text(json.dumps(resolved))
    versions = [{"torch": "2.12", "numpy": "2"}, {"torch": "2.13", "numpy": "2"}]
    directories.lines(other / "starts.jsonl", [{"commit": "c" * 40, "versions": each} for each in versions])
    found = {f"{each['of']} {each['name']}": each["values"] for each in differences(told([same, other]))}
    assert found == {
        "recipe optimizer.lr": [0.003, 0.001],
        "json optimizer.params.eps": [0.003, 0.001],
        "start commit": [None, "cccccccccccc"],
        "start versions.torch": [None, "2.12, then 2.13"],
        "start versions.numpy": [None, "2"],
        "data part 1 train.sha256": ["a" * 12, "b" * 12],
        "data part 1 validation.sha256": ["a" * 12, "b" * 12],
    }


def test_different_tokenisers_compare_by_bits_alone(tmp_path: Path) -> None:
    few, many = data(2.0), data(4.0, tokeniser="gpt2")
    runs = told([run(tmp_path, "a", [line(1, 8.0)], few), run(tmp_path, "b", [line(1, 8.0)], many)])
    assert compare(runs)["equal"][0]["bits_per_byte"] == pytest.approx([8 / 2 / LN2, 8 / 4 / LN2])
    assert loss_scales(runs) == ("loss (bits a byte)", pytest.approx([1 / 2 / LN2, 1 / 4 / LN2]))
    assert remarks(runs) == ["the tokenisers differ: losses a token do not compare, bits a byte do"]


def pairs(reference: str) -> dict[str, Any]:
    described = data()
    described["parts"][0]["reference"] = {"sha256": reference * 64}
    return described


def test_losses_of_pairs_are_no_bits_and_compare_under_one_reference_alone(tmp_path: Path) -> None:
    prefers = ["data.corpus=x", "data.tokeniser=y", "data.template=auto", "dpo.beta=0.1"]
    one, again = (run(tmp_path, name, [line(1, 0.7)], pairs("a"), settings=prefers) for name in "ab")
    other = run(tmp_path, "c", [line(1, 0.7)], pairs("b"), settings=prefers)
    texts = run(tmp_path, "d", [line(1, 8.0)], data(tokeniser="gpt2"))
    values = compare(told([one, other]))
    assert values["equal"][0]["bits_per_byte"] == [None, None] and values["equal"][0]["losses"] == [0.7, 0.7]
    assert values["remarks"] == ["the references differ: losses do not compare"]
    assert values["differences"] == [{"of": "data", "name": "part 1 reference", "values": ["a" * 12, "b" * 12]}]
    assert remarks(told([one, again])) == []
    assert loss_scales(told([one, again])) == ("loss (nats a pair)", [1, 1])
    assert remarks(told([one, texts])) == ["the losses are those of a pair and of a token: they do not compare"]
    assert loss_scales(told([one, texts])) == ("loss (nats a pair or a token)", [1, 1])


def test_a_branch_goes_on_where_it_left_its_parent(tmp_path: Path) -> None:
    parent = run(tmp_path, "a", [line(step, 9.0 - step) for step in (1, 2, 3)], name="mine")
    left = {"id": "0" * 16, "path": str(parent), "step": 2, "consumed_samples": 20, "changes": []}
    branch = run(tmp_path, "b", [line(3, 6.5), line(4, 5.0)], parent=left, name="bolder")
    runs = told([parent, branch])
    assert runs[1].curve.seconds.tolist() == [30, 40]
    assert compare(runs)["runs"][1]["branched_at_tokens"] == 1280
    assert remarks(runs) == ["bolder branched from mine after step 2, 1,280 tokens"]
    tuned = run(tmp_path, "c", [line(1, 6.0)], parent=left | {"consumed_samples": 0, "tuned": True}, name="kind")
    assert told([tuned])[0].branched_at is None and remarks(told([tuned])) == ["kind tunes mine after step 2"]
    plot(runs, tmp_path / "out" / "x.png")
    assert (tmp_path / "out" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverges_leaves_the_picture_and_the_others_keep_their_room(tmp_path: Path) -> None:
    calm = run(tmp_path, "a", [line(step, 9.0 - step, validation_loss=4.0) for step in (1, 2, 3)])
    wild = run(tmp_path, "b", [line(1, 8.0), line(2, 900.0), line(3, None)])
    with picture(tmp_path / "x.png", panels=1) as (axes,):
        draw(axes, "tokens", [Drawn(each.label, each.curve) for each in told([calm, wild])])
        assert axes.get_ylim() == pytest.approx((3.8, 8.2))  # from 4 to 8, and a twentieth more
        assert axes.get_xlabel() == "tokens (thousands)"


def test_runs_without_a_common_place_or_a_step(tmp_path: Path) -> None:
    left = {"id": "0" * 16, "path": str(tmp_path / "gone"), "step": 9, "consumed_samples": 90, "changes": []}
    runs = told([run(tmp_path, "a", [line(1, None)]), run(tmp_path, "b", [line(10, 5.0)], parent=left, status=None)])
    assert compare(runs)["equal"] == [] and runs[1].state == "crashed"
    assert remarks(runs) == ["b branched from 0000000000000000 after step 9, 5,760 tokens"]
    plot(told([run(tmp_path, each, []) for each in ("c", "d")]), tmp_path / "x.png")


def test_names_that_two_runs_share_are_told_apart(tmp_path: Path) -> None:
    paths = [run(tmp_path / root, "x", []) for root in ("a", "b")]
    (tmp_path / "b" / "gpt_tiny").rename(tmp_path / "b" / "other")
    paths[1] = tmp_path / "b" / "other" / "x"
    assert [each.label for each in told(paths)] == ["gpt_tiny/x", "other/x"]
    assert [each.label for each in told([paths[0], paths[0]])] == ["x", "x"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path, "a", [line(1, 8.0)])
    with pytest.raises(UserError, match="takes 2 to 8 runs, and 1 were given"):
        compare(told([path]))
    with pytest.raises(UserError, match="is not a run directory"):
        compare(told([path, tmp_path]))
    (tmp_path / "file").touch()
    for out in ("file/x.png", "x.nothing"):
        with pytest.raises(UserError, match="the picture cannot be written to"):
            plot(told([path, path]), tmp_path / out)
