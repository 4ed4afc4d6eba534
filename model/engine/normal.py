"""A JSON in its normal form: each key checked, old spellings translated, what means nothing here dropped."""

from typing import Any

from model.engine.problems import Problem, shown
from model.engine.table import NEEDED, ROWS, Row, inside
from support.json_object import JsonObject
from support.nearest import hint

SCHEMA = "docs/ds_config.schema.json"
MOST_LISTED = 12  # keys in a message
SCHEDULERS = tuple(ROWS["scheduler.type"].only)


class Normal:
    """The normal form `json` of a JSON, a line in `notes` for each change that was made, and all `problems`."""

    def __init__(self, given: JsonObject) -> None:
        self.json: JsonObject = {}
        self.dropped: dict[tuple[str, str], list[str]] = {}  # keys by their section and by why they are dropped
        self.written: list[str] = []
        self.problems: list[Problem] = []
        self.moved: list[tuple[str, Row, Any]] = []
        self._section(given, "", "", self.json)
        for path, row, value in self.moved:
            self._put(path, row, value)
        self._scheduler()

    def _refuse(self, path: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(path, what, remedy))

    def _section(self, given: JsonObject, prefix: str, written: str, out: JsonObject) -> None:
        """Check a section into `out`. `prefix` is its path in the table, `written` the one in the file."""
        known = inside(prefix)
        for key, value in given.items():
            path, row = f"{written}.{key}" if written else key, known.get(key)
            if row is None:
                self._refuse(path, f"unknown key {path}", _nearest(key, known))
            elif row.to in ROWS and ROWS[row.to].type == row.type == "section":  # a section's old spelling
                self._renamed(path, row, value, given, out)
            else:
                self._key(path, row, value, out)

    def _renamed(self, path: str, row: Row, value: Any, given: JsonObject, out: JsonObject) -> None:
        if row.to in given:
            self._refuse(path, f"{path} stands beside {row.to}, its newer spelling", "take it out")
            return
        self._written(path, row)
        self._key(path, ROWS[row.to], value, out)

    def _key(self, path: str, row: Row, value: Any, out: JsonObject) -> None:
        key = row.key.rpartition(".")[2]
        if row.here == "off":
            self._off(path, row, value)
        elif value is None:
            if not row.may_be_null:
                self._refuse(path, f"{path} is null", "give it a value or take it out")
        elif value == "auto" and row.type != "list":
            self._auto(path, row, out)
        elif row.type in ("section", "free"):
            self._object(path, row, value, out)
        else:
            try:
                fitted = row.fitted(value)
            except ValueError:
                self._refuse(path, f"{path} is {shown(value)}", _remedy(row, value))
                return
            if row.here == "moved":
                self.moved.append((path, row, fitted))
            elif row.here in ("taken", "ours"):
                out[key] = fitted
            else:
                self._dropped(path, row)

    def _off(self, path: str, row: Row, value: Any) -> None:
        on = value.get("enabled", any(value.values())) if isinstance(value, dict) else value
        if on:
            self._refuse(path, f"{path} is switched on", f"{row.why}; take it out")
        else:
            self._drop(path, "off")

    def _auto(self, path: str, row: Row, out: JsonObject) -> None:
        if not row.auto:
            self._refuse(path, f'{path} cannot be "auto"', "give it a value, or take it out")
        elif row.here == "moved":
            self.moved.append((path, row, "auto"))
        elif row.here in ("taken", "ours"):
            if row.type != "section":  # a section that is "auto" has its defaults
                out[row.key.rpartition(".")[2]] = "auto"
        else:
            self._dropped(path, row)

    def _object(self, path: str, row: Row, value: Any, out: JsonObject) -> None:
        if not isinstance(value, dict):
            self._refuse(path, f"{path} is {shown(value)}", "it must be an object")
        elif row.type == "free":
            self._dropped(path, row)
        else:
            holder = out.setdefault(row.key.rpartition(".")[2], {})
            self._section(value, row.key, path, holder)

    def _dropped(self, path: str, row: Row) -> None:
        if row.here != "silent":
            self._drop(path, row.why)

    def _drop(self, path: str, why: str) -> None:
        section, _, key = path.rpartition(".")
        self.dropped.setdefault((section, why), []).append(key)

    @property
    def notes(self) -> list[str]:
        """A line for each key that has a new spelling, and one for keys that are dropped together."""
        lines = []
        for (section, why), keys in self.dropped.items():
            names = ", ".join([f"{section}.{keys[0]}" if section else keys[0], *keys[1:]])
            lines.append(f"{names} {'is' if len(keys) == 1 else 'are'} dropped: {why}")
        return self.written + lines

    def _put(self, path: str, row: Row, value: Any) -> None:
        """Write the value of an old spelling under the new one."""
        if row.as_ is not None:
            if value is not True:  # false, or an "auto": the default is false
                return
            value = dict(row.as_) if isinstance(row.as_, dict) else row.as_
        holder, (*sections, key) = self.json, row.to.split(".")
        for section in sections:
            holder = holder.setdefault(section, {})
        standing = holder.get(key, "auto")
        if "auto" not in (standing, value) and standing != value:
            self._refuse(path, f"{path} stands beside {row.to}, its newer spelling", "take it out")
            return
        holder[key] = value if standing == "auto" else standing
        self._written(path, row)

    def _written(self, path: str, row: Row) -> None:
        self.written.append(f"{path} is written {row.to}, as DeepSpeed spells it now")

    def _scheduler(self) -> None:
        """Refuse parameters of another scheduler, and the absence of those that a scheduler needs."""
        section = self.json.get("scheduler")
        if section is None or any(problem.key in ("scheduler", "scheduler.type") for problem in self.problems):
            return
        kind, params = section.get("type"), section.get("params", {})
        if kind is None:
            remedy = f"add one of {', '.join(SCHEDULERS)}, or take scheduler out for the recipe's warm-up and decay"
            self._refuse("scheduler", "scheduler has no type", remedy)
            return
        known = {key: row for key, row in inside("scheduler.params").items() if kind in row.of}
        for key in params:
            if key not in known:
                self._refuse(
                    f"scheduler.params.{key}", f"unknown key scheduler.params.{key} of {kind}", hint(key, known)
                )
        for key, row in known.items():
            if row.of[kind] == NEEDED and key not in params:
                self._refuse("scheduler", f"scheduler {kind} needs scheduler.params.{key}", f"add it: {row.words}")


def _nearest(key: str, known: dict[str, Row]) -> str:
    """What to do with an unknown key: it may stand in the wrong section, or be mistyped."""
    places = dict.fromkeys(row.to or row.key for row in ROWS.values() if row.key.rpartition(".")[2] == key)
    if "." in key:
        return 'write a section as an object: {"section": {"key": …}}'
    if 0 < len(places) < 3:
        return f"did you mean {' or '.join(places)}?"
    if len(known) <= MOST_LISTED:
        return hint(key, known)
    return hint(key, known, otherwise=f"take it out; {SCHEMA} lists the keys", cutoff=0.6)


def _remedy(row: Row, value: Any) -> str:
    if row.only and row.why:
        return row.why
    listed = len(row.only) > 3 and all(isinstance(each, str) for each in (value, *row.only))
    return hint(value, row.only) if listed else f"it must be {row.words}"
