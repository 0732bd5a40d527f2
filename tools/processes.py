"""Processes by pid, as /proc and pidfds know them; Linux only, like the product."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def command_line(pid: int) -> str:
    """Arguments separated by spaces; empty when there is no such process, or it is a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def with_argument(text: str) -> Iterator[int]:
    """The processes, but this one, with ``text`` in their command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and text in command_line(int(entry.name)):
            yield int(entry.name)


def descendants(pid: int) -> set[int]:
    """All processes below ``pid``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold anything, spaces and parentheses too.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {pid}


def send(pid: int, number: signal.Signals) -> None:
    """Signals a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait(pid: int, seconds: float) -> bool:
    """Whether the process, ours or not, has ended within ``seconds``."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(0.0, seconds))[0])
    finally:
        os.close(descriptor)


def wait_all(pids: list[int], seconds: float) -> list[int]:
    """Those that have not ended within ``seconds``, together."""
    deadline = time.monotonic() + seconds
    return [pid for pid in pids if not wait(pid, deadline - time.monotonic())]
