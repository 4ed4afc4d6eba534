"""The batch's arithmetic: global batch = micro-batch x accumulation x data degree."""

from model.engine.problems import Problem
from support.json_object import JsonObject

GLOBAL, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
KEYS = (GLOBAL, MICRO, STEPS)


class Arithmetic:
    """Fills the three sizes of `config`, in place. A size that the JSON gives beats the recipe's.

    `deviations` has a line for each that differs from the recipe; `problems` what does not multiply out. A size that
    the JSON leaves open follows from the two that it gives, as in DeepSpeed; else it is the recipe's.
    """

    def __init__(self, config: JsonObject, recipe: JsonObject, data_degree: int, ramp: tuple[int, ...]) -> None:
        self.problems: list[Problem] = []
        given: dict[str, int] = {key: config[key] for key in KEYS if config.get(key, "auto") != "auto"}
        size = given.get(GLOBAL, int(recipe[GLOBAL]))
        micro = given.get(MICRO, int(recipe[MICRO]))
        if GLOBAL not in given and MICRO in given and STEPS in given:
            size = micro * given[STEPS] * data_degree
        elif GLOBAL in given and MICRO not in given:
            micro = _micro(size, micro, given.get(STEPS), data_degree)
        wanted = {GLOBAL: recipe[GLOBAL], MICRO: recipe[MICRO]}
        config |= {GLOBAL: size, MICRO: micro, STEPS: given.get(STEPS, size // max(1, micro * data_degree))}
        self.deviations = [
            f"{key} is {config[key]} (recipe: {value})" for key, value in wanted.items() if config[key] != value
        ]
        self._check(config, given, data_degree)
        self._check_ramp(micro * data_degree, ramp)

    def _check(self, config: JsonObject, given: JsonObject, data_degree: int) -> None:
        size, micro, steps = (config[key] for key in KEYS)
        key = GLOBAL if GLOBAL in given else next(iter(given), GLOBAL)
        for name, value in (("global batch", size), ("micro-batch", micro)):
            if value < 1:
                self.problems.append(Problem(key, f"the {name} is {value}", "it must be at least 1"))
        unit = micro * data_degree
        if self.problems or size == unit * steps:
            return
        if STEPS in given:
            self.problems.append(
                Problem(
                    STEPS,
                    f"global batch {size} is not micro-batch {micro} x accumulation {steps} x data degree "
                    f"{data_degree} = {unit * steps}",
                    f'set gradient_accumulation_steps to "auto", or train_batch_size to {unit * steps}',
                )
            )
            return
        nearest = sorted({max(unit, size - size % unit), size - size % unit + unit})
        self.problems.append(
            Problem(
                key,
                f"global batch {size} does not divide by micro-batch {micro} x data degree {data_degree} = {unit}",
                f"the nearest global batches that do: {', '.join(map(str, nearest))}"
                f"{_nearest_micro(size, micro, data_degree)}",
            )
        )

    def _check_ramp(self, unit: int, ramp: tuple[int, ...]) -> None:
        for size in ramp if not self.problems else ():
            if size % unit:
                nearest = [near for near in (size - size % unit, size - size % unit + unit) if near]
                what = (
                    f"the batch-size ramp has a global batch of {size}, which micro-batch x data degree = {unit} does"
                )
                remedy = f"the nearest that do: {', '.join(map(str, nearest))}"
                self.problems.append(Problem(MICRO, f"{what} not divide", remedy))
                return


def _micro(size: int, recipe: int, steps: int | None, data_degree: int) -> int:
    """The micro-batch of a global batch that the JSON gives alone or with the accumulation.

    It follows from both; else it is the recipe's, or the largest smaller one that divides a rank's share.
    """
    share = size // data_degree
    if size % data_degree or share < 1:
        return recipe
    if steps is not None:
        return share // steps if share % steps == 0 else recipe
    return next(micro for micro in range(min(recipe, share), 0, -1) if share % micro == 0)


def _nearest_micro(size: int, micro: int, data_degree: int) -> str:
    if size % data_degree:
        return ""
    share = size // data_degree
    divisors = [each for each in range(1, min(share, 2**16) + 1) if share % each == 0]
    nearest = sorted(divisors, key=lambda each: abs(each - micro))[:2]
    return f"; the nearest micro-batches for {size}: {', '.join(map(str, sorted(nearest)))}"
