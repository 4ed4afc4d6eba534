"""How long a scheduler lets a job run."""

import re

from support.errors import UserError

FORM = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)")


def seconds_of(limit: str) -> int:
    """`[days-]hours:minutes:seconds` in seconds; 0 for no limit. Errors: `UserError` for any other form, and for 0."""
    found = FORM.fullmatch(limit)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    if limit and not total:
        raise UserError(f"time_limit is {limit!r}; write [days-]hours:minutes:seconds, such as 2-00:00:00")
    return total
