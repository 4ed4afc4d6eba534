"""What a start says of its JSON and of the recipe's fields that were overridden, and keeps."""

import json
from pathlib import Path

import pytest

from recipes.registry import load
from run.request import Request, plan_run
from support.errors import UserError


def test_each_overridden_field_is_a_deviation(tmp_path: Path) -> None:
    settings = (
        "model.num_layers=6",
        "data.corpus=my/texts,more",
        "optimizer.betas=0.9,0.9",
        "engine=ds_configs/zero2_fp32.json",
    )
    request = Request(settings=settings, run_dir=str(tmp_path / "run"), seed=7)
    assert set(plan_run(load("tiny"), request, 2).engine.deviations) == {
        "model.num_layers is 6 (recipe: 2)",
        "data.corpus is my/texts,more (recipe: shakespeare)",
        "optimizer.betas is (0.9, 0.9) (recipe: (0.9, 0.95))",
        "engine is ds_configs/zero2_fp32.json (recipe: ds_configs/zero1_fp32.json)",
        "seed is 7 (recipe: 1234)",
    }
    assert plan_run(load("tiny"), Request(run_dir=str(tmp_path / "run")), 2).engine.deviations == ()


def test_what_was_translated_is_a_note_and_the_json_is_kept_as_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"bfloat16": {"enabled": "auto"}, /* mine */ "gradient_clipping": "auto",}')
    run = plan_run(load("tiny"), Request(str(path), run_dir=str(tmp_path / "run")), 2)
    assert run.engine.notes == ("bfloat16 is written bf16, as DeepSpeed spells it now",)
    assert run.engine_json == {"bfloat16": {"enabled": "auto"}, "gradient_clipping": "auto"}
    assert run.engine.json["bf16"] == {"enabled": False} and run.engine.json["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("section", "key"),
    [("csv_monitor", "output_path"), ("tensorboard", "output_path"), ("flops_profiler", "output_file")],
)
def test_a_place_that_cannot_be_written_to_is_said_before_the_start(section: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({section: {"enabled": True, key: str(tmp_path / "file" / "x" / "y")}}))
    with pytest.raises(UserError, match=f"{section}.{key} is .* and nothing can be written there; give another place"):
        plan_run(load("tiny"), Request(str(path), run_dir=str(tmp_path / "run")), 2)
    assert not (tmp_path / "run").exists()
