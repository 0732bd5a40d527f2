"""Which limits a task gets: what it asks, else the least of all defaults, and never more than the most. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jobcluster_common.errors import Fault, Invalid
from jobcluster_common.limits import Amounts, faults, least_of, too_little

from jobcluster_worker.launcher.shapes import IoLimits, Limits


def applied(asked: Limits, defaults: Sequence[Amounts], most: Amounts) -> Limits:
    """The limits to set. Where nothing is asked, the least of the defaults and of the most is the limit.

    :raises Invalid: if more is asked than this worker allows, or less than can work; every such limit is named
    """
    wanted = amounts(asked)
    wrong = faults(wanted, most, "this worker allows")
    wrong += [Fault(f"/limits/{name}", why) for name, n in wanted.items() if (why := too_little(name, n))]
    if wrong:
        raise Invalid(wrong)
    found = from_amounts(least_of([*defaults, most]) | wanted)
    if "oom" in asked:
        found["oom"] = asked["oom"]
    return found


def amounts(limits: Limits) -> dict[str, float]:
    """By the names that users know, without what is not limited."""
    own = {"cpu": limits.get("cpu"), "memory": limits.get("memory_bytes"), "pids": limits.get("pids")}
    io = cast("dict[str, int]", limits.get("io", {}))
    named = own | {f"io/{name}": value for name, value in io.items()}
    return {name: value for name, value in named.items() if value}


def from_amounts(amounts: Amounts) -> Limits:
    """By the names of the proto's Limits."""
    found: Limits = {}
    io = {name.removeprefix("io/"): int(value) for name, value in amounts.items() if name.startswith("io/")}
    if "cpu" in amounts:
        found["cpu"] = amounts["cpu"]
    if "memory" in amounts:
        found["memory_bytes"] = int(amounts["memory"])
    if "pids" in amounts:
        found["pids"] = int(amounts["pids"])
    if io:
        found["io"] = cast(IoLimits, io)
    return found
