"""What was found before a run, check by check: each finding is one line with its remedy. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail", "skipped"]
MOST_NAMED = 4  # ranks or hosts in a line: among thousands the rest is a number


@dataclass(frozen=True)
class Finding:
    """What is wrong, where, and the remedy, in one line. What `spoils` a run keeps it from starting."""

    line: str
    spoils: bool = True


@dataclass(frozen=True)
class Check:
    """One check: its name, what was seen, and what is wrong. One that could not be made is `skipped`."""

    name: str
    seen: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False

    @property
    def state(self) -> State:
        """The worst of its findings."""
        if self.findings:
            return "fail" if any(each.spoils for each in self.findings) else "warn"
        return "skipped" if self.skipped else "ok"


def spoiling(checks: Sequence[Check]) -> list[str]:
    """The lines that keep a run from starting."""
    return [each.line for check in checks for each in check.findings if each.spoils]


def few(names: Sequence[object]) -> str:
    """The first names, and how many more there are: `a, b, c, d and 276 more`."""
    shown = ", ".join(map(str, names[:MOST_NAMED]))
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED:,} more"
