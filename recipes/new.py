"""A new recipe from an old one: the text of its file, under a name of its own."""

import re
from pathlib import Path

from recipes import registry
from recipes.recipe import Recipe
from support import files
from support.errors import UserError

STATUS = "planned: never run at size"
FIGURES = re.compile(r"^parameters .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)  # the block of a header that has them


def new_recipe(name: str, source: Recipe) -> Path:
    """Write `recipes/gpt_<name>.py`, the recipe `source` under another name; returns the file.

    Errors: `UserError` where the name is none for a recipe or is taken, or the file of `source` has another form.
    """
    stem = _stem(name)
    path = registry.ROOT / "recipes" / f"{stem}.py"
    text = _renamed((path.with_name(f"{source.name}.py")).read_text(encoding="utf-8"), stem, source)
    files.write(path, text)
    return path


def _stem(name: str) -> str:
    stem = "gpt_" + name.removeprefix("gpt_").removesuffix(".py").replace(".", "_")
    if not re.fullmatch(r"gpt_[a-z0-9]+(_[a-z0-9]+)*", stem):
        raise UserError(
            f"{name!r} is no name for a recipe; take small letters, digits and single dots or underscores between "
            "them, for example mine or 350m.wide"
        )
    folder, short = registry.ROOT / "recipes", registry.short_name(stem)
    taken = [path for path in folder.glob("*.py") if stem in (path.stem, f"gpt_{path.stem}")]
    if taken:
        raise UserError(f"recipes/{taken[0].name} exists already; give another name, or remove that file")
    makefile = registry.ROOT / "Makefile"
    targets = re.findall(r"^([a-z0-9.-]+):", makefile.read_text(), re.MULTILINE) if makefile.exists() else []
    if short in targets:
        raise UserError(f"make {short} does something else; give the recipe another name than {short}")
    return stem


def _renamed(text: str, stem: str, source: Recipe) -> str:
    """The text of a recipe's file with another name; what its header says of the old one's history stays there."""
    figures = FIGURES.search(source_header := text.split('"""')[1])
    title = f"GPT {registry.short_name(stem)}: begun as a copy of {source.name}."
    header = f"{title}\n\n{figures[0].rstrip()}\n" if figures else title
    text = text.replace(source_header, header, 1)
    for field, old, new in (("name", source.name, stem), ("status", source.status, STATUS)):
        text, found = re.subn(rf'\b{field}=(["\']){re.escape(old)}\1', f'{field}="{new}"', text)
        if found != 1:
            raise UserError(
                f'recipes/{source.name}.py has {field}="{old}" {found} times, and a copy needs it once; copy the file '
                f"by hand, and write the new {field} into it"
            )
    return text
