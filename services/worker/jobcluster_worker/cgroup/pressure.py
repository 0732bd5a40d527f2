"""Pressure stall information (PSI): for how long tasks of a group stood still for want of CPU, memory or IO.

Not every kernel has it (CONFIG_PSI; psi=1 where it is off by default), and then there are no such files.
"""

from collections.abc import Mapping
from typing import Final

RESOURCES: Final = ("cpu", "memory", "io")
KINDS: Final = ("some", "full")  # at least one task stood still, all did


def file_of(resource: str) -> str:
    return f"{resource}.pressure"


def parse(texts: Mapping[str, str | None]) -> dict[str, float | None]:
    """Seconds by resource and kind, from the texts by resource; None = not counted here.

    Before Linux 5.13 cpu.pressure of a group had no line "full".
    """
    counted: dict[str, float | None] = {}
    for resource in RESOURCES:
        totals = _totals(texts.get(resource) or "")
        for kind in KINDS:
            total = totals.get(kind)
            counted[f"{resource}_pressure_{kind}_seconds"] = None if total is None else total / 1e6
    return counted


def _totals(text: str) -> dict[str, int]:
    """Microseconds by the first word of each line: "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234"."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        kind, *pairs = line.split() or [""]
        total = dict(pair.split("=", 1) for pair in pairs if "=" in pair).get("total")
        if total is not None:
            found[kind] = int(total)
    return found
