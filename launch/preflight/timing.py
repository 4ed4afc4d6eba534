"""What a rank measured of its group. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of an all-reduce of `large` bytes and of 8 bytes in a rank's group, the `group`-th of its axis."""

    axis: str
    group: int
    large: int
    seconds: float
    small_seconds: float
