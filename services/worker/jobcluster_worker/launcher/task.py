"""One attempt's life: prepare, gate, start, pump, first cause, TERM, grace, kill of the whole tree, drain, seal, end.

All of it runs in the supervisor's loop but prepare and spawn, which run in a starter thread and post their outcome.
Stdlib only.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.containment import Containment
from jobcluster_worker.launcher.loop import READ, Loop, Timer
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.pump import Pump
from jobcluster_worker.launcher.shapes import (
    State,
    Task,
    TaskKey,
    Usage,
    id_of,
    new_task,
    no_output,
    no_usage,
)
from jobcluster_worker.launcher.start import Start, StartFailed
from jobcluster_worker.launcher.starters import Starters

if TYPE_CHECKING:
    from jobcluster_worker.cgroup.leaf import Leaf

_KILL_AGAIN_SECONDS = 0.5
_UNKILLABLE_SECONDS = 60.0
_REMOVAL_SECONDS = 5.0


class Phase(enum.Enum):
    """Where a task stands."""

    PREPARING = enum.auto()
    """A starter thread prepares it (and, without a gate, executes it)."""
    GATE = enum.auto()
    """Prepared; waits for its commit."""
    SPAWNING = enum.auto()
    """Committed; a starter thread executes it."""
    RUNNING = enum.auto()
    """Its leader was started; only its end can come now."""
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class Cause:
    """What happened first; it decides state and reason, whatever happens later."""

    state: State
    reason: str


class Host(Protocol):
    """What a task needs of its supervisor."""

    loop: Loop
    starters: Starters
    log_file: str

    def contain(self, task: RunningTask) -> Containment: ...

    def watch_members(self, task: RunningTask) -> None:
        """From now on ``settle`` is to be called whenever its membership may have become empty."""

    def unwatch_members(self, task: RunningTask) -> None: ...

    def prepared(self, task: RunningTask) -> None: ...

    def changed(self, task: RunningTask) -> None: ...

    def ended(self, task: RunningTask) -> None:
        """Its output is to be sealed with its record."""


class RunningTask:
    """From its claim to its end; ``record`` is what others are told."""

    def __init__(self, host: Host, start: Start, gated: bool, default_grace_seconds: float) -> None:
        self.key = start.key
        self.start = start
        self.phase = Phase.PREPARING
        self.pid = 0
        self.leader_lives = False
        self.record: Task = new_task(start.key, "starting")
        self.record["output"] = no_output(str(start.data_path), host.log_file, available=True)
        self._host = host
        self._gated = gated
        self._default_grace_seconds = default_grace_seconds
        self._cause: Cause | None = None
        self._pidfd = -1
        self._pump: Pump | None = None
        self._containment: Containment | None = None
        self._timeout: Timer | None = None
        self._stop_number = 0
        self._stop_grace = float("inf")
        self._kill_at = float("inf")
        self._kill_timer: Timer | None = None
        self._first_kill: float | None = None
        self._cpu_seconds = 0.0

    @property
    def has_pidfd(self) -> bool:
        """Whether the end of a live leader is found by itself."""
        return self._pidfd >= 0

    # --- start

    def begin(self) -> None:
        """Prepares, and starts unless gated."""
        self._submit(self._prepare)

    def commit(self) -> bool:
        """Opens the gate; False when the task does not stand there."""
        if self.phase is not Phase.GATE:
            return False
        self.phase = Phase.SPAWNING
        self._submit(self._spawn)
        return True

    def _submit(self, work: Callable[[], None]) -> None:
        try:
            self._host.starters.submit(work)
        except OSError as error:
            self._host.loop.post(partial(self._failed_to_start, f"EAGAIN: {error.strerror}"))

    def _prepare(self) -> None:
        """In a starter thread."""
        post = self._host.loop.post
        try:
            self.start.prepare()
        except StartFailed as error:
            post(partial(self._failed_to_start, str(error)))
        except Exception as error:
            post(partial(self._failed_to_start, f"{type(error).__name__}: {error}"))
        else:
            if self._gated:
                post(self._reached_gate)
            else:
                self._spawn()

    def _spawn(self) -> None:
        """In a starter thread. A stop that came until now leaves nothing to be executed."""
        post = self._host.loop.post
        if self._cause is not None:
            post(self._finish)
            return
        try:
            pid = self.start.spawn()
        except StartFailed as error:
            post(partial(self._failed_to_start, str(error)))
        except Exception as error:
            post(partial(self._failed_to_start, f"{type(error).__name__}: {error}"))
        else:
            wall, now = time.time_ns() // 1000, self._host.loop.clock()
            post(lambda: self._started(pid, wall, now))

    def _reached_gate(self) -> None:
        if self._cause is not None:
            self._finish()
            return
        self.phase = Phase.GATE
        self._note_limits()
        self._host.prepared(self)

    def _failed_to_start(self, text: str) -> None:
        if self._cause is None:
            self._cause = Cause("failed", "start_failed")
            self.record["error_text"] = text
        self._finish()

    def _started(self, pid: int, started_at_us: int, started: float) -> None:
        self.phase, self.pid, self.leader_lives = Phase.RUNNING, pid, True
        self.record["state"], self.record["pid"] = "running", pid
        self.record["started_at_us"] = started_at_us
        note("task_started", pid=pid, **id_of(self.key))
        self._note_limits()
        host = self._host
        self._containment = host.contain(self)
        if self.start.log is not None:
            self._pump = Pump(host.loop, self.start.log, self.start.readers, self._output_limit)
        self._watch_leader()
        timeout = self.start.spec.get("timeout_seconds") or 0.0
        if timeout > 0:
            self._timeout = host.loop.at(started + timeout, self._timed_out)
        if self._cause is not None:
            self._signal_tree()
        host.changed(self)

    def _watch_leader(self) -> None:
        # It is ours and not reaped, so the number still means it.
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            # Out of descriptors: the supervisor's look at its children finds the end as well.
            note("task_fault", "warning", reason=f"pidfd_open: {error}", **id_of(self.key))
            return
        self._host.loop.watch(self._pidfd, READ, lambda _events: self.look_at_leader())

    def _note_limits(self) -> None:
        self.record["limits_effective"] = self.start.limits_effective
        self.record["enforced"] = self.start.enforced

    # --- causes

    def stop(self, number: int, grace_seconds: float, reason: str) -> None:
        """Signals the whole tree; what still lives after the grace is killed. Again, it can only shorten the grace."""
        self._end_by(Cause("stopped", reason), number, grace_seconds)

    def abandon(self) -> None:
        """Kills it: nobody could be told of it any more."""
        self._end_by(Cause("failed", "supervisor_lost"), signal.SIGKILL, 0.0)

    def _timed_out(self) -> None:
        self._end_by(Cause("failed", "timed_out"), signal.SIGTERM, self._default_grace_seconds)

    def _output_limit(self) -> None:
        self._end_by(Cause("failed", "output_limit"), signal.SIGTERM, self._default_grace_seconds)

    def _end_by(self, cause: Cause, number: int, grace_seconds: float) -> None:
        if self.leader_lives:
            # A leader that has ended already ended by itself, even if its turn in the loop is still to come.
            self.look_at_leader()
        if self.phase is Phase.ENDED:
            return
        first = self._cause is None
        if first:
            self._cause = cause
        grace = 0.0 if number == signal.SIGKILL else max(0.0, grace_seconds)
        self._stop_grace = min(self._stop_grace, grace)
        if first or number == signal.SIGKILL:
            self._stop_number = number
        if self.phase is Phase.GATE:
            self._finish()
        elif self.phase is Phase.RUNNING and (self.leader_lives or self._first_kill is None):
            # Without its leader too, what it left behind may be waiting for its grace.
            self._signal_tree(again=not first)

    def _signal_tree(self, again: bool = False) -> None:
        now = self._host.loop.clock()
        if self.record["state"] == "running":
            self.record["state"] = "stopping"
            self._host.changed(self)
        self._kill_at = min(self._kill_at, now + self._stop_grace)
        if not again and self._stop_number != signal.SIGKILL:
            self._send(self._stop_number)
            # A process that was stopped could not act on the signal (systemd does the same).
            self._send(signal.SIGCONT)
        self._arm_kill(self._kill_at)

    def _send(self, number: int) -> None:
        if self._containment is None:
            return
        try:
            self._containment.signal(number)
        except OSError as error:
            note("task_fault", "error", reason=f"signal: {error}", **id_of(self.key))

    def _arm_kill(self, when: float) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if when <= self._host.loop.clock():
            self._kill()
        else:
            self._kill_timer = self._host.loop.at(when, self._kill)

    def _kill(self) -> None:
        if self.phase is Phase.ENDED or self._containment is None:
            return
        now = self._host.loop.clock()
        try:
            self._containment.kill()
        except OSError as error:
            note("task_fault", "error", reason=f"kill: {error}", **id_of(self.key))
        if self._first_kill is None:
            self._first_kill = now
        elif now - self._first_kill > _UNKILLABLE_SECONDS:
            note("task_unkillable", "error", pid=self.pid, **id_of(self.key))
        waited = now - self._first_kill
        self._kill_at = now
        self._kill_timer = self._host.loop.after(_KILL_AGAIN_SECONDS + waited / 4, self._kill_or_settle)

    def _kill_or_settle(self) -> None:
        """A process in an uninterruptible sleep, or a fork that a kill by descent missed: once more."""
        if not self.leader_lives:
            self.settle()
        if self.phase is not Phase.ENDED:
            self._kill()

    # --- end

    def look_at_leader(self) -> None:
        """Takes note of the leader's end, if it has come."""
        if not self.leader_lives:
            return
        reaped = processes.reap(self.pid)
        if reaped is None:
            return
        status, self._cpu_seconds = reaped
        self.leader_lives = False
        if self._pidfd >= 0:
            self._host.loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            self.record["exit_code"] = code
        else:
            self.record["signal"] = processes.signal_name(-code)
        if self._cause is None:
            self._cause = self._natural_cause(code)
        self._host.watch_members(self)

    def add_cpu(self, seconds: float) -> None:
        """CPU of a process that the task left behind and that was reaped here."""
        self._cpu_seconds += seconds

    def settle(self) -> None:
        """Once the leader is gone: ends when the tree is empty; kills what is left, at once or after the grace."""
        if self.leader_lives or self.phase is not Phase.RUNNING or self._containment is None:
            return
        if self._containment.empty():
            self._finish()
        elif self._kill_timer is None:
            # Its leader ended by itself: a daemonised child does not hold the end.
            self._kill()

    def _natural_cause(self, code: int) -> Cause:
        if code < 0:
            return Cause("failed", "signaled")
        return Cause("succeeded" if code == 0 else "failed", "exited")

    def _finish(self) -> None:
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        self._host.unwatch_members(self)
        for timer in (self._timeout, self._kill_timer):
            if timer is not None:
                timer.cancel()
        self._note_limits()
        self.start.close_child_ends()
        self._close_pipes()
        self._count_usage()
        self._record_end()
        self._record_output()
        self._host.ended(self)

    def _close_pipes(self) -> None:
        if self._pump is not None:
            self._pump.drain()
            return
        for fd in self.start.readers.values():
            os.close(fd)
        self.start.readers.clear()

    def _count_usage(self) -> None:
        """The counters go with the leaf, so they are read before it is removed."""
        usage = no_usage()
        if self.pid:
            usage["cpu_seconds"] = round(self._cpu_seconds, 6)
        leaf, self.start.leaf = self.start.leaf, None
        if leaf is not None:
            try:
                usage = cast(Usage, leaf.usage())
            except OSError as error:
                note("task_fault", "error", reason=f"usage: {error}", **id_of(self.key))
            self._remove(leaf)
        self.record["usage"] = usage

    def _remove(self, leaf: Leaf) -> None:
        """At once, or, while the kernel is still taking the last process apart (EBUSY), in a thread that may wait."""
        try:
            leaf.remove(0.0)
        except OSError:
            with contextlib.suppress(OSError):
                self._host.starters.submit(partial(_remove_patiently, leaf, self.key))

    def _record_end(self) -> None:
        cause = self._cause or Cause("failed", "start_failed")
        usage = self.record["usage"]
        if cause.reason == "signaled" and self.record["signal"] == "KILL" and usage["oom_kills"]:
            cause = Cause("failed", "oom_killed")
        self.record["state"], self.record["reason"] = cause.state, cause.reason
        self.record["finished_at_us"] = max(time.time_ns() // 1000, self.record["started_at_us"])

    def _record_output(self) -> None:
        output, log = self.record["output"], self.start.log
        if log is None:
            output["available"] = False
            return
        output.update(log.totals())  # type: ignore[typeddict-item]
        if log.error is not None and log.dropped_bytes and not self.record["error_text"]:
            # The task itself may have gone well; that not all it wrote was kept must be said all the same.
            name = errno.errorcode.get(log.error.errno or 0, "EIO")
            self.record["error_text"] = (
                f"output: {name}: {log.error.strerror}; {log.dropped_bytes} bytes were dropped"
            )


def _remove_patiently(leaf: Leaf, key: TaskKey) -> None:
    try:
        leaf.remove(_REMOVAL_SECONDS)
    except OSError as error:
        note("leaf_not_removed", "error", reason=str(error), **id_of(key))
