"""Changes to a recipe: `--set section.field=value`, and a recipe from its JSON form."""

import dataclasses
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from recipes.recipe import Part, Recipe
from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint


def from_dict(values: JsonObject, where: str) -> Recipe:
    """Build a recipe from its JSON form. Errors: `UserError` of one line that names field and reason."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        # Checks of our own name their field; pydantic's do not.
        raise UserError(
            f"{where}: {message}" if first["type"] == "value_error" else f"{where}: {place}: {message}"
        ) from None


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Apply `section.field=value` settings. Errors: `UserError` that names the nearest field."""
    values = dataclasses.asdict(recipe)
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write section.field=value, for example --set model.num_layers=4")
        section, _, key = path.strip().rpartition(".")
        holder = values.get(section) if section else values
        described = path in ("name", "source", "status")
        if not isinstance(holder, dict) or key not in holder or isinstance(holder[key], dict) or described:
            known = [f"{s}.{k}" for s, v in values.items() if isinstance(v, dict) for k in v] + ["engine", "seed"]
            raise UserError(f"--set {setting}: there is no field {path}; {hint(path, known)}")
        own = OWN.get(path)
        holder[key] = own(value) if own else _parsed(holder[key], value.strip(), setting)
        if path == "model.hidden_size" and values["model"]["ffn_hidden_size"] == 4 * recipe.model.hidden_size:
            values["model"]["ffn_hidden_size"] = 0  # follows the width, as in the declaration
    return from_dict(values, "--set")


def plain(recipe: Recipe, left_out: tuple[str, ...] = ()) -> JsonObject:
    """A recipe as its JSON form, without the sections and fields `left_out`, its blend spelled as `--set` takes it."""
    values = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in left_out}
    return {**values, "data": {**values["data"], "corpus": spelled(recipe.data.corpus)}}


def spelled(corpus: str | tuple[Part, ...]) -> str:
    """A corpus or a blend as `--set data.corpus=…` takes it."""
    if isinstance(corpus, str):
        return corpus
    return ",".join(f"{part.corpus}={part.weight:.15g}" if part.weight else part.corpus for part in corpus)


def _corpus(text: str) -> str | list[dict[str, object]]:
    """`a` is a corpus, `a=0.7,b=0.3` a blend of two with their weights, `a,b` one without."""
    parts: list[dict[str, object]] = []
    for piece in text.strip().split(","):
        name, _, weight = piece.rpartition("=")
        try:
            parts.append({"corpus": name.strip(), "weight": float(weight)})
        except ValueError:
            parts.append({"corpus": piece.strip()})
    return text.strip() if len(parts) == 1 and "weight" not in parts[0] else parts


def _template(text: str) -> str:
    """A template, whose line ends are written as \\n: a command line can hold none with ease."""
    return text.replace("\\n", "\n")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parsed(old: object, text: str, setting: str) -> object:
    """A setting's value in the type of the one it replaces."""
    if isinstance(old, (tuple, list)):
        return [_parsed(0.0, part, setting) for part in text.strip("()[]").split(",")]
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"--set {setting}: {text!r} is neither true nor false")
        return text.lower() == "true"
    if isinstance(old, int) or old is None:  # None is where a number may be
        return _whole(text, setting)
    if isinstance(old, float):
        try:
            return float(text)
        except ValueError:
            raise UserError(f"--set {setting}: {text!r} is not a number") from None
    return text


OWN: dict[str, Callable[[str], object]] = {  # what reads a field, where its form alone does not say
    "data.corpus": _corpus,
    "data.clean": _names,
    "data.template": _template,
    "tasks.names": _names,
    "lora.targets": _names,
}


def _whole(text: str, setting: str) -> int:
    """A whole number to its last digit, also as 3e9 or 1_000: a float would round what has more than 15 digits."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    # No field holds more than 2^63; without a bound 1e999999999 would be written out.
    if not number.is_finite() or number.adjusted() > 18 or number % 1:
        raise UserError(f"--set {setting}: {text!r} is not a whole number of at most 19 digits")
    return int(number)
