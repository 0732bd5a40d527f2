"""CPU time and memory of processes and all that lives below them, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_of(pids: Iterable[int]) -> set[int]:
    """The processes, and their descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents[int(entry.name)] = int(fields[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """Seconds used by the processes, their descendants, and all children they have waited for."""
    return sum(sum(int(n) for n in fields[11:15]) / TICKS for pid in tree_of(pids) if (fields := _stat(pid)))


def rss_of(pids: Iterable[int]) -> int:
    """Resident bytes of the processes and their descendants; what they share counts in each."""
    return sum(int(fields[21]) * PAGE for pid in tree_of(pids) if (fields := _stat(pid)))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, or none when the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
