"""The stop of a task's whole tree: a signal, the grace, the kill, and that again until nothing is left. Stdlib only."""

from __future__ import annotations

import signal
from collections.abc import Callable

from jobcluster_worker.launcher.containment import Containment
from jobcluster_worker.launcher.loop import Loop, Timer
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import TaskKey, id_of

_KILL_AGAIN_SECONDS = 0.5
_UNKILLABLE_SECONDS = 60.0


class Stopping:
    """What is asked for before there is a tree is kept for it. ``is_left``: whether a kill must be repeated."""

    def __init__(self, loop: Loop, key: TaskKey, is_left: Callable[[], bool]) -> None:
        self._loop = loop
        self._key = key
        self._is_left = is_left
        self._containment: Containment | None = None
        self._pid = 0
        self._number = 0
        self._grace_seconds = float("inf")
        self._kill_at = float("inf")
        self._timer: Timer | None = None
        self._first_kill: float | None = None

    @property
    def planned(self) -> bool:
        """Whether a kill is to come, or has come."""
        return self._timer is not None

    def tree(self, pid: int, containment: Containment) -> None:
        """There it is; ``pid`` is its leader's."""
        self._pid, self._containment = pid, containment

    def ask(self, number: int, grace_seconds: float) -> bool:
        """Takes note of a stop. False: it would not kill earlier than what was asked for before, so it is nothing."""
        grace = 0.0 if number == signal.SIGKILL else max(0.0, grace_seconds)
        if grace >= min(self._grace_seconds, self._kill_at - self._loop.clock()):
            return False
        self._number, self._grace_seconds = number, grace
        return True

    def signal(self) -> None:
        """Sends the signal of the strictest stop and arms its kill."""
        now = self._loop.clock()
        self._kill_at = min(self._kill_at, now + self._grace_seconds)
        if self._number != signal.SIGKILL:
            self._send(self._number)
            # A process that was stopped could not act on the signal (systemd does the same).
            self._send(signal.SIGCONT)
        if self._timer is not None:
            self._timer.cancel()
        if self._kill_at <= now:
            self.kill()
        else:
            self._timer = self._loop.at(self._kill_at, self.kill)

    def kill(self) -> None:
        """At once."""
        if self._containment is None:
            return
        now = self._loop.clock()
        try:
            self._containment.kill()
        except OSError as error:
            note("task_fault", "error", reason=f"kill: {error}", **id_of(self._key))
        if self._first_kill is None:
            self._first_kill = now
        elif now - self._first_kill > _UNKILLABLE_SECONDS:
            note("task_unkillable", "error", pid=self._pid, **id_of(self._key))
        waited = now - self._first_kill
        self._kill_at = now
        self._timer = self._loop.after(_KILL_AGAIN_SECONDS + waited / 4, self._again)

    def over(self) -> None:
        """Nothing of the tree is left."""
        self._containment = None
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        """A process in an uninterruptible sleep, or a fork that a kill by descent missed: once more."""
        if self._is_left():
            self.kill()

    def _send(self, number: int) -> None:
        if self._containment is None:
            return
        try:
            self._containment.signal(number)
        except OSError as error:
            note("task_fault", "error", reason=f"signal: {error}", **id_of(self._key))
