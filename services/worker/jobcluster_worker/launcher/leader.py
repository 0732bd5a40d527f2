"""A task's first process: its end, and the CPU time of whatever of the task was reaped. Stdlib only."""

from __future__ import annotations

import os
from collections.abc import Callable

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.loop import READ, Loop
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import TaskKey, id_of


class Leader:
    """``pid`` is 0 until it began. ``on_end`` is called once, with its exit code, negative for a signal."""

    def __init__(self, loop: Loop, key: TaskKey, on_end: Callable[[int], None]) -> None:
        self._loop = loop
        self._key = key
        self._on_end = on_end
        self.pid = 0
        self.lives = False
        self.cpu_seconds = 0.0
        """Also of what the task left behind and was reaped here."""
        self._pidfd = -1

    @property
    def is_watched(self) -> bool:
        """Whether the end of one that lives is found by itself."""
        return self._pidfd >= 0

    def began(self, pid: int) -> None:
        self.pid, self.lives = pid, True
        # It is ours and not reaped, so the number still means it.
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            # Out of descriptors: the supervisor's look at its children finds the end as well.
            note("task_fault", "warning", reason=f"pidfd_open: {error}", **id_of(self._key))
            return
        self._loop.watch(self._pidfd, READ, lambda _events: self.look())

    def look(self) -> None:
        """Takes note of its end, if that has come."""
        if not self.lives:
            return
        reaped = processes.reap(self.pid)
        if reaped is None:
            return
        status, cpu_seconds = reaped
        self.cpu_seconds += cpu_seconds
        self.lives = False
        if self._pidfd >= 0:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._on_end(os.waitstatus_to_exitcode(status))
