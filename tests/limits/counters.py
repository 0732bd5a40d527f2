"""The kernel's own counters of a cgroup, read from outside. Stdlib only."""

import time
from pathlib import Path

PERIOD = 0.1  # of cpu.max, in seconds
_DEADLINE_SECONDS = 60.0


def counters(group: Path, name: str) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, (group / name).read_text().splitlines())}


def cores_used(group: Path, periods: int = 25) -> tuple[float, float]:
    """By the kernel's counters alone: cores over all periods, and over those in which the group was throttled.

    Where this very machine gets too little time, periods pass in which the group is neither served nor throttled. So
    the first is never above the limit, the second never below it.
    """
    begun = _after(group, 5)
    ended = _after(group, begun["nr_periods"] + periods)
    grown = {name: ended[name] - begun[name] for name in ("usage_usec", "nr_periods", "nr_throttled")}
    used = grown["usage_usec"] / 1e6 / PERIOD
    return used / grown["nr_periods"], used / max(grown["nr_throttled"], 1)


def _after(group: Path, periods: int) -> dict[str, int]:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while (found := counters(group, "cpu.stat"))["nr_periods"] < periods:
        assert time.monotonic() < deadline, f"period {periods} was not reached: {found}"
        time.sleep(0.02)
    return found
