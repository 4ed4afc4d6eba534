import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

import recipes
from planner import planning
from recipes import registry
from recipes.recipe import Batch, Part, Recipe, Schedule, steps_for
from recipes.registry import ROOT, load, names
from recipes.settings import from_dict, override, spelled

UNITS = {"M": 1e6, "B": 1e9}


def header(recipe: Recipe) -> str:
    return (ROOT / "recipes" / f"{recipe.name}.py").read_text().split('"""')[1]


@pytest.mark.parametrize("name", names())
def test_name_and_header_are_the_arithmetic(name: str) -> None:
    """A recipe's name is its parameters, and every figure of its header is what the declaration gives."""
    recipe, text = load(name), header(load(name))
    assert recipe.name == name
    size = re.fullmatch(r"gpt_([\d_]+)([mbt])", name)
    if size:
        nominal = float(size[1].replace("_", ".")) * {"m": 1e6, "b": 1e9, "t": 1e12}[size[2]]
        assert recipe.model.num_parameters == pytest.approx(nominal, rel=0.03)
    parameters = re.search(r"^parameters +([\d.,]+) ([MB])", text, re.MULTILINE)
    assert parameters and float(parameters[1].replace(",", "")) == round(
        recipe.model.num_parameters / UNITS[parameters[2]], 1
    )
    assert f"tokens a step   {recipe.tokens_per_step:,} " in text
    assert re.search(rf"^steps +{recipe.train_steps:,} ", text, re.MULTILINE)
    flops = re.search(r"^FLOPs +(\S+) +\(([\d.,]+) MFLOPs a token", text, re.MULTILINE)
    assert flops and float(flops[1]) == pytest.approx(recipe.train_flops, rel=0.05)
    assert float(flops[2].replace(",", "")) == round(recipe.model.flops_per_token / 1e6, 1)


@pytest.mark.parametrize("name", names())
def test_every_recipe_works_out_at_its_reference_cluster(name: str) -> None:
    recipe = load(name)
    values = planning.plan(recipe, ROOT / recipe.engine, recipe.cluster.world_size)
    replicas = recipe.cluster.world_size // recipe.layout.ranks_per_replica
    assert values["data_degree"] == replicas
    assert replicas * values["micro_batch"] * values["gradient_accumulation"] == recipe.batch.global_batch
    clusters = re.search(
        r"^cluster +([\d,]+) .* = tensor (\d+) x pipeline (\d+) x data (\d+)", header(recipe), re.MULTILINE
    )
    if recipe.cluster.gpu != "cpu":
        assert clusters
        stated = [int(number.replace(",", "")) for number in clusters.groups()]
        assert stated == [recipe.cluster.world_size, recipe.layout.tp, recipe.layout.pp, replicas]
    assert values["global_batch"] == recipe.batch.global_batch
    assert values["deviations"] == []
    assert recipe.status.split(":")[0] in ("verified", "planned")
    assert recipe.source


@pytest.mark.parametrize("name", names())
def test_a_recipe_survives_json(name: str) -> None:
    recipe = load(name)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(recipe))), "x") == recipe


def test_short_names_and_near_misses() -> None:
    assert load("345m") is load("gpt_345m")
    with pytest.raises(ValueError, match="there is no recipe '354m'; did you mean gpt_345m"):
        load("354m")
    with pytest.raises(ValueError, match="there is no recipe 'xyz'"):
        load("xyz")


def test_a_recipe_is_any_file_that_assigns_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "words.py").write_text("SETTINGS = 'no RECIPE = here'\n")
    (folder / "chat_1.py").write_text(
        "import dataclasses\nfrom recipes.gpt_tiny import RECIPE\nRECIPE = dataclasses.replace(RECIPE, name='chat_1')\n"
    )
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(folder)])
    assert names() == ["chat_1"] and load("chat.1").name == load("chat_1").name == "chat_1"
    assert registry.short_name("chat_1") == "chat.1" and registry.short_name("gpt_1_3b") == "1.3b"


SIZES = [load(name) for name in names() if load(name).cluster.gpu != "cpu"]
GPT3 = [recipe for recipe in SIZES if recipe.name != "gpt_345m"]  # that one is Megatron-LM's own, with beta2 0.999


@pytest.mark.parametrize("name", names())
def test_the_warm_up_is_long_enough(name: str) -> None:
    """Adam's second moment is an average over 1 / (1 - beta2) steps; Ma & Yarats 2021 (arXiv:1910.04209) warm up over
    two of those. Of the published runs that have this warm-up in tokens and no ramp, the one with the fewest steps is
    Megatron-DeepSpeed's 175B: 3B tokens in steps of 1,536 x 2,048."""
    recipe = load(name)
    steps = steps_for(recipe.schedule.warmup_tokens // recipe.model.seq_length, recipe.batch)
    assert steps >= 2 / (1 - recipe.optimizer.betas[1])
    if recipe.cluster.gpu != "cpu":
        assert steps >= round(3e9 / (1536 * 2048)) == 954


def test_larger_models_have_smaller_rates() -> None:
    rates = [recipe.optimizer.lr for recipe in GPT3]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("name", "low", "high"), [
    ("18b", "13b", "175b"), ("39b", "13b", "175b"), ("76b", "13b", "175b"), ("310b", "175b", "530b"),
    ("1t", "175b", "530b"),
])  # fmt: skip
def test_rates_that_nobody_published_are_on_the_line(name: str, low: str, high: str) -> None:
    """To two digits, on the line through two published rates: log rate over log parameters."""
    sizes, rates = zip(*((load(n).model.num_parameters, load(n).optimizer.lr) for n in (low, high)), strict=True)
    slope = math.log(rates[1] / rates[0]) / math.log(sizes[1] / sizes[0])
    found = rates[0] * (load(name).model.num_parameters / sizes[0]) ** slope
    assert f"{load(name).optimizer.lr:.1e}" == f"{found:.1e}"


@pytest.mark.parametrize("name", names())
def test_initial_weights_are_what_the_comment_says(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.py").read_text()
    if found := re.search(r"init_method_std=([\d.e-]+),  # (?:section 3.2: )?sqrt\(1 / 3h\)$", text, re.MULTILINE):
        digits = len(f"{float(found[1]):g}".split(".")[1])
        assert round((3 * load(name).model.hidden_size) ** -0.5, digits) == float(found[1])


def test_every_json_is_another_one() -> None:
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    assert len({file.read_text() for file in files}) == len(files)


def test_overrides_are_typed() -> None:
    recipe = override(
        load("tiny"),
        ["model.num_layers=2", "optimizer.betas=0.8,0.9", "schedule.train_tokens=1e6", "data.corpus=a=b", "seed=7"],
    )
    assert recipe.model.num_layers == 2
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.schedule.train_tokens == 1_000_000
    assert recipe.data.corpus == "a=b"
    assert recipe.seed == 7
    assert load("tiny").optimizer.betas != (0.8, 0.9)


def test_whole_numbers_stay_whole() -> None:
    """The nearest float of the first one ends in …788."""
    for text, number in {
        "20240101123456789": 20240101123456789,
        "3e9": 3_000_000_000,
        "1_000": 1000,
        "2.5e1": 25,
    }.items():
        assert override(load("tiny"), [f"seed={text}"]).seed == number


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("a=0.7,b=0.3", (Part("a", 0.7), Part("b", 0.3))),
        ("a.jsonl, b/c:d", (Part("a.jsonl"), Part("b/c:d"))),
        ("a=1e6,b=638400", (Part("a", 1_000_000), Part("b", 638_400))),  # tokens of each: the budget of gpt_tiny
        ("k=v/a=1", (Part("k=v/a", 1.0),)),
    ],
)
def test_a_blend_is_overridden(setting: str, parts: tuple[Part, ...]) -> None:
    recipe = override(load("tiny"), [f"data.corpus={setting}"])
    assert recipe.data.parts == parts
    assert override(load("tiny"), [f"data.corpus={spelled(recipe.data.corpus)}"]) == recipe
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(recipe))), "x") == recipe


def test_530b_has_the_fifteen_parts() -> None:
    parts = load("530b").data.parts
    assert len(parts) == len({part.corpus for part in parts}) == 15
    assert sum(part.weight for part in parts) == pytest.approx(1, abs=1e-12)


def test_the_feed_forward_width_follows_an_overridden_width() -> None:
    assert override(load("tiny"), ["model.hidden_size=96"]).model.ffn_hidden_size == 384
    fixed = override(load("tiny"), ["model.hidden_size=96", "model.ffn_hidden_size=100"])
    assert fixed.model.ffn_hidden_size == 100


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.num_layer=2", "no field model.num_layer; did you mean model.num_layers"),
        ("modle.num_layers=2", "did you mean model.num_layers"),
        ("model=2", "no field model"),
        ("num_layers=2", "did you mean model.num_layers"),
        ("model.num_layers", "write section.field=value"),
        ("model.num_layers=two", "'two' is not a whole number"),
        ("model.num_layers=2.5", "'2.5' is not a whole number"),
        ("model.num_layers=nan", "'nan' is not a whole number"),
        ("optimizer.lr=fast", "'fast' is not a number"),
        ("optimizer.lr=0", "optimizer.lr is 0.0; it must be positive"),
        ("optimizer.betas=0.9", "optimizer.betas"),
        ("optimizer.betas=0.9,1.5", "each must be in [0, 1)"),
        ("optimizer.lr=nan", "must be positive"),
        ("seed=-1", "the seed is -1"),
        ("name=mine", "there is no field name"),
        ("layout.sequence_parallel=maybe", "neither true nor false"),
        ("schedule.warmup_tokens=1e12", "must be at least 0 and below"),
        ("data.corpus=a=0.7,b=0.2", "the weights of the blend add up to 0.9; make them add up to 1, or as tokens"),
        ("data.corpus=a=0.7,b", "the weight of b is 0.0; give every part a weight above 0, or none"),
        ("data.corpus=a=2,b=-1", "the weight of b is -1.0"),
        ("data.corpus=a=nan,b=1", "the weight of a is nan"),
        ("data.temperature=0", "data.temperature is 0.0"),
        ("batch.micro_batch=0", "batch.micro_batch is 0"),
        ("intervals.save_every=-1", "intervals.save_every is -1; it must be at least 0"),
        ("intervals.save_minutes=inf", "intervals.save_minutes is inf"),
        ("intervals.save_minutes=5", "save_every and save_minutes are both given; set one of them to 0"),
        ("intervals.log_every=0", "intervals.log_every is 0; it must be at least 1"),
        ("tasks.every_steps=0", "tasks.every_steps is 0; it must be at least 1"),
        ("tasks.shots=-1", "tasks.shots is -1; it must be at least 0"),
        ("schedule.min_lr_ratio=-0.5", "schedule.min_lr_ratio is -0.5; it must be from 0 to 1"),
        ("schedule.min_lr_ratio=10", "schedule.min_lr_ratio is 10.0"),
        ("schedule.min_lr_ratio=nan", "schedule.min_lr_ratio is nan"),
        ("model.init_method_std=nan", "model.init_method_std is nan"),
        ("model.ffn_hidden_size=-4", "model.ffn_hidden_size is -4"),
        ("data.masked_share=0", "data.masked_share is 0.0"),
        ("data.masked_share=nan", "data.masked_share is nan"),
        ("data.masked_to_random=0.3", "data.masked_to_mask is 0.8 and data.masked_to_random 0.3"),
        ("data.masked_to_mask=nan", "data.masked_to_mask is nan"),
        ("cluster.nodes=0", "cluster.nodes is 0"),
        ("seed=9223372036854775808", "below 2^63"),
        ("seed=1e999999999", "is not a whole number"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_remedy(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        override(load("tiny"), [setting])
    assert "\n" not in str(caught.value)


def test_the_schedule_by_hand() -> None:
    schedule = Schedule(train_tokens=1000, warmup_tokens=100, decay_tokens=500, min_lr_ratio=0.1)
    assert schedule.lr_ratio(0) == 0
    assert schedule.lr_ratio(50) == 0.5
    assert schedule.lr_ratio(100) == 1.0
    assert schedule.lr_ratio(300) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule.lr_ratio(200) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert schedule.lr_ratio(500) == schedule.lr_ratio(999) == pytest.approx(0.1)
    assert Schedule(train_tokens=10, warmup_tokens=0, decay_tokens=10).lr_ratio(0) == 1.0


def test_reading_the_recipes_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names():
        load(name)
    assert list(tmp_path.iterdir()) == []


def test_the_ramp_by_hand() -> None:
    batch = Batch(global_batch=8, micro_batch=1, ramp_start=2, ramp_increment=2, ramp_samples=30)
    assert batch.ramp == (2, 4, 6)
    assert [batch.at(n) for n in (0, 9, 10, 19, 20, 29, 30, 1000)] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert Batch(8, 1).at(0) == 8


def test_steps_count_the_ramp() -> None:
    recipe = override(load("tiny"), ["batch.ramp_start=4", "batch.ramp_increment=4", "batch.ramp_samples=200"])
    consumed = steps = 0
    samples = recipe.schedule.train_tokens / recipe.model.seq_length
    while consumed < samples:
        consumed += recipe.batch.at(consumed)
        steps += 1
    assert recipe.train_steps == steps


def test_530b_ramps_as_published() -> None:
    batch = load("530b").batch
    assert batch.ramp[:3] == (32, 64, 96) and batch.ramp[-1] == 1888
    assert batch.ramp_samples * 2048 == pytest.approx(12e9, rel=1e-3)


@pytest.mark.parametrize(
    ("ramp", "words"),
    [((2, 0, 0), "needs batch.ramp_start"), ((8, 2, 10), "does not reach"), ((2, 5, 10), "does not reach")],
)
def test_a_ramp_that_does_not_arrive_is_refused(ramp: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Batch(8, 1, *ramp)


def test_an_engine_that_does_not_go_with_a_pipeline_is_refused() -> None:
    recipe = load("530b")
    for name, words in {
        "zero2_bf16": "ZeRO stage 2 does not go with layout.pp 35",
        "zero3_bf16": "ZeRO stage 3 does not go with layout.pp 35",
        "zero0_fp32": "clips by a norm that misses the other stages",
    }.items():
        with pytest.raises(ValueError, match=words):
            planning.plan(recipe, ROOT / "ds_configs" / f"{name}.json", 2240)


def test_a_laptop_is_told_what_530b_needs() -> None:
    with pytest.raises(ValueError, match=r"at least 280 ranks .* for 2240; here are 2: .* make rehearse-530b"):
        planning.plan(load("530b"), ROOT / "ds_configs" / "pipeline_bf16.json", 2)


def test_a_ramp_that_the_data_degree_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ramp has a global batch of 32, .* nearest that do: 30, 40"):
        planning.plan(load("530b"), ROOT / "ds_configs" / "pipeline_bf16.json", 2800)
