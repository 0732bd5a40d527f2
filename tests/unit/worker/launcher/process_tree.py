"""Processes as /proc shows them, independent of the product's own view."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 20.0


def wait_until(is_true: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Looks until it is true; a state that nobody announces (a process is gone, a file is there)."""
    last = time.monotonic() + seconds
    while not (found := is_true()):
        assert time.monotonic() < last, f"not within {seconds} s: {what}"
        select.select([], [], [], 0.005)
    return found


def children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(p) for p in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def below(pid: int) -> list[int]:
    found = children(pid)
    for child in found:
        found += [other for other in children(child) if other not in found]
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")
