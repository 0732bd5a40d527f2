"""Amounts of limits by their public names: what is too much, what is too little, and how it is said.

``Amounts`` has a name for each limit that is set ("cpu", "memory", "pids", "io/read_bps" …: the rest of its pointer
below ``/limits``), in cores, bytes, processes, and per second. A limit that is not there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import Fault

Amounts = Mapping[str, float]

NAMES = ("cpu", "memory", "pids", "io/read_bps", "io/write_bps", "io/read_iops", "io/write_iops")
LEAST: dict[str, float] = {"cpu": 0.01, "memory": 2 << 20}
"""Less cannot work: the kernel gives 1 ms of CPU in 100 at least, and the start of `true` was seen to take 1.3 MiB."""

_SIZES = frozenset({"memory", "io/read_bps", "io/write_bps"})
_UNITS = ("", "KiB", "MiB", "GiB", "TiB")


def text(name: str, amount: float) -> str:
    """As users write it, and exact: "64MiB", "1000" bytes, "0.5" cores."""
    if name not in _SIZES:
        return f"{amount:.12g}"
    whole, power = int(amount), 0
    while whole and whole % 1024 == 0 and power < len(_UNITS) - 1:
        whole, power = whole // 1024, power + 1
    return f"{whole}{_UNITS[power]}"


def too_much(name: str, amount: float, who: str, most: float, otherwise: str = "") -> Fault:
    """More than somebody allows: ``who`` with its verb, as in "worker w1 allows"; ``otherwise``: what else helps."""
    bound = text(name, most)
    return Fault(
        f"/limits/{name}",
        f"{text(name, amount)} is more than {who}: {bound}; ask for {bound} or less{otherwise}",
    )


def faults(asked: Amounts, most: Amounts, who: str, otherwise: str = "") -> list[Fault]:
    """All that is asked beyond ``most``."""
    return [
        too_much(name, amount, who, most[name], otherwise)
        for name, amount in asked.items()
        if name in most and amount > most[name]
    ]


def too_little(name: str, amount: float) -> str | None:
    """Why so little cannot work, and what to do; None when it can."""
    least = LEAST.get(name, 0)
    if amount >= least:
        return None
    unit = "; a number without a unit is in bytes" if name in _SIZES else ""
    return f"{text(name, amount)} is too little to work with: at least {text(name, least)} is needed{unit}"


def least_of(several: Iterable[Amounts]) -> dict[str, float]:
    """Of each limit the least amount."""
    found: dict[str, float] = {}
    for amounts in several:
        for name, amount in amounts.items():
            found[name] = min(amount, found.get(name, amount))
    return found
