"""Which limits a task gets: what it asks, else the worker's default, and never more than the worker's most. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from jobcluster_common.errors import Fault, Invalid

from jobcluster_worker.launcher.shapes import Limits


def applied(asked: Limits, default: Limits, most: Limits) -> Limits:
    """The limits to set. Where nothing is asked and there is no default, the most is the limit.

    :raises Invalid: if more is asked than the worker allows
    """
    faults: list[Fault] = []
    found = _applied(asked, default, most, "/limits", faults)
    if faults:
        raise Invalid(faults)
    return cast("Limits", found)


def _applied(
    asked: Mapping[str, Any],
    default: Mapping[str, Any],
    most: Mapping[str, Any],
    pointer: str,
    faults: list[Fault],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*asked, *default, *most]):
        ask, usual, bound = asked.get(name), default.get(name), most.get(name)
        if name == "io":
            inner = _applied(ask or {}, usual or {}, bound or {}, f"{pointer}/io", faults)
            if inner:
                found[name] = inner
        elif name == "oom":
            found[name] = ask or usual
        elif ask and bound and ask > bound:
            faults.append(Fault(f"{pointer}/{name}", f"{ask:g} is more than this worker allows: {bound:g}"))
        else:
            chosen = ask or (min(usual, bound) if usual and bound else usual or bound)
            if chosen:
                found[name] = chosen
    return found
