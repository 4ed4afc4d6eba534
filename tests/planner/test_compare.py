import dataclasses

from planner.compare import compare
from recipes.recipe import Part
from recipes.registry import load


def test_only_what_differs_is_listed() -> None:
    a = load("345m")
    b = dataclasses.replace(
        a, name="b", model=dataclasses.replace(a.model, num_layers=2), engine="ds_configs/zero2_bf16.json"
    )
    values = compare(a, b)
    assert (values["a"], values["b"]) == ("gpt_345m", "b")
    assert values["recipe"] == [
        {"field": "model.num_layers", "a": 24, "b": 2},
        {"field": "engine", "a": a.engine, "b": b.engine},
    ]
    assert {"field": "zero_optimization.stage", "a": 1, "b": 2} in values["json"]
    assert not [row for row in values["json"] if row["a"] == row["b"]]
    assert compare(a, a) == {"a": a.name, "b": a.name, "recipe": [], "json": []}


def test_numbers_are_those_that_deepspeed_gets() -> None:
    rows = {row["field"]: (row["a"], row["b"]) for row in compare(load("tiny"), load("530b"))["json"]}
    assert rows["train_batch_size"] == (16, 1920) and rows["gradient_accumulation_steps"] == (1, 240)
    assert rows["bf16.enabled"] == (None, True)


def test_a_blend_is_told_as_set_takes_it() -> None:
    a = load("tiny")
    blend = (Part("x", 0.25), Part("y", 0.75))
    b = dataclasses.replace(a, data=dataclasses.replace(a.data, corpus=blend))
    assert compare(a, b)["recipe"] == [{"field": "data.corpus", "a": "shakespeare", "b": "x=0.25,y=0.75"}]
