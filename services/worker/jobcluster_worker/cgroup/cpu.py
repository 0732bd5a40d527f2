"""The cpu controller: cores asked for, and the kernel's account of them."""

from collections.abc import Mapping
from typing import Any, Final

CONTROLLER: Final = "cpu"
MAX_FILE: Final = "cpu.max"
WEIGHT_FILE: Final = "cpu.weight"
STAT_FILE: Final = "cpu.stat"

_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000  # the kernel refuses less


def values(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to write for `limits["cpu"]` cores; nothing for none."""
    cores = float(limits.get("cpu") or 0)
    if cores <= 0:
        return []
    quota = max(round(cores * _PERIOD_US), _LEAST_QUOTA_US)
    # Beside others a task of two cores gets twice what one of one core gets; 100 is the kernel's default.
    weight = min(max(round(cores * 100), 1), 10_000)
    return [(MAX_FILE, f"{quota} {_PERIOD_US}"), (WEIGHT_FILE, str(weight))]


def parse_max(text: str) -> float | None:
    """Cores by cpu.max; None = no limit."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def parse_stat(text: str) -> dict[str, float | None]:
    """cpu_seconds, and cpu_throttled_seconds where the controller is on."""
    counters = dict(line.split() for line in text.splitlines() if line)
    throttled = counters.get("throttled_usec")
    return {
        "cpu_seconds": int(counters["usage_usec"]) / 1e6,
        "cpu_throttled_seconds": None if throttled is None else int(throttled) / 1e6,
    }
