"""One attempt's life: prepare, gate, start, pump, first cause, TERM, grace, kill of the whole tree, drain, seal, end.

All of it runs in the supervisor's loop but prepare and spawn, which run in a starter thread and post their outcome.
Stdlib only.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.containment import Containment
from jobcluster_worker.launcher.leader import Leader
from jobcluster_worker.launcher.leafend import count_and_remove
from jobcluster_worker.launcher.loop import Loop, Timer
from jobcluster_worker.launcher.members import Members
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.pump import Pump
from jobcluster_worker.launcher.shapes import (
    State,
    Task,
    id_of,
    new_task,
    no_output,
    no_usage,
)
from jobcluster_worker.launcher.start import Start, StartFailed
from jobcluster_worker.launcher.starters import Starters
from jobcluster_worker.launcher.stopping import Stopping


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
    members: Members
    log_file: str

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
        self.leader = Leader(host.loop, start.key, self._leader_ended)
        self.record: Task = new_task(start.key, "starting")
        self.record["output"] = no_output(str(start.data_path), host.log_file, available=True)
        self._host = host
        self._gated = gated
        self._default_grace_seconds = default_grace_seconds
        self._cause: Cause | None = None
        self._pump: Pump | None = None
        self._containment: Containment | None = None
        self._timeout: Timer | None = None
        self._stopping = Stopping(host.loop, self.key, self._is_left)

    @property
    def starts(self) -> bool:
        """Whether a starter thread may be making its leader."""
        return self.phase in (Phase.PREPARING, Phase.SPAWNING)

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
        self.phase = Phase.RUNNING
        self.leader.began(pid)
        self.record["state"], self.record["pid"] = "running", pid
        self.record["started_at_us"] = started_at_us
        note("task_started", pid=pid, **id_of(self.key))
        self._note_limits()
        host = self._host
        self._containment = host.members.contain(self)
        self._stopping.tree(pid, self._containment)
        if self.start.log is not None:
            self._pump = Pump(host.loop, self.start.log, self.start.readers, self._output_limit)
        timeout = self.start.spec.get("timeout_seconds") or 0.0
        if timeout > 0:
            self._timeout = host.loop.at(started + timeout, self._timed_out)
        if self._cause is not None:
            self._signal_tree()
        host.changed(self)

    def _note_limits(self) -> None:
        self.record["limits_effective"] = self.start.limits_effective
        self.record["enforced"] = self.start.enforced

    # --- causes

    def stop(self, number: int, grace_seconds: float, reason: str) -> None:
        """Signals the whole tree; what still lives after the grace is killed. Again, it can only hasten that."""
        self._end_by(Cause("stopped", reason), number, grace_seconds)

    def abandon(self) -> None:
        """Kills it: nobody could be told of it any more."""
        self._end_by(Cause("failed", "supervisor_lost"), signal.SIGKILL, 0.0)

    def _timed_out(self) -> None:
        self._end_by(Cause("failed", "timed_out"), signal.SIGTERM, self._default_grace_seconds)

    def _output_limit(self) -> None:
        self._end_by(Cause("failed", "output_limit"), signal.SIGTERM, self._default_grace_seconds)

    def _end_by(self, cause: Cause, number: int, grace_seconds: float) -> None:
        # A leader that has ended already ended by itself, even if its turn in the loop is still to come.
        self.leader.look()
        if self.phase is Phase.ENDED:
            return
        if self._cause is None:
            self._cause = cause
        hastens = self._stopping.ask(number, grace_seconds)
        if self.phase is Phase.GATE:
            self._finish()
        elif self.phase is Phase.RUNNING and hastens and (self.leader.lives or self._stopping.planned):
            # Without its leader too, what it left behind may be waiting for its grace.
            self._signal_tree()

    def _signal_tree(self) -> None:
        if self.record["state"] == "running":
            self.record["state"] = "stopping"
            self._host.changed(self)
        self._stopping.signal()

    def _is_left(self) -> bool:
        """Whether something of it is, after a kill."""
        if not self.leader.lives:
            self.settle()
        return self.phase is not Phase.ENDED

    # --- end

    def _leader_ended(self, code: int) -> None:
        if code >= 0:
            self.record["exit_code"] = code
        else:
            self.record["signal"] = processes.signal_name(-code)
        if self._cause is None:
            self._cause = self._natural_cause(code)
        self._host.members.watch(self)

    def settle(self) -> None:
        """Once the leader is gone: ends when the tree is empty; kills what is left, at once or after the grace."""
        if self.leader.lives or self.phase is not Phase.RUNNING or self._containment is None:
            return
        try:
            empty = self._containment.empty()
        except OSError as error:
            note("task_fault", "error", reason=f"looking for what is left: {error}", **id_of(self.key))
            empty = False
        if empty:
            self._finish()
        elif not self._stopping.planned:
            # Its leader ended by itself: a daemonised child does not hold the end.
            self._stopping.kill()

    def _natural_cause(self, code: int) -> Cause:
        if code < 0:
            return Cause("failed", "signaled")
        return Cause("succeeded" if code == 0 else "failed", "exited")

    def _finish(self) -> None:
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        self._host.members.unwatch(self)
        self._stopping.over()
        if self._timeout is not None:
            self._timeout.cancel()
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
        usage = no_usage()
        if self.leader.pid:
            usage["cpu_seconds"] = round(self.leader.cpu_seconds, 6)
        leaf, self.start.leaf = self.start.leaf, None
        if leaf is not None:
            usage = count_and_remove(leaf, self.key, self._host.starters) or usage
        self.record["usage"] = usage

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
