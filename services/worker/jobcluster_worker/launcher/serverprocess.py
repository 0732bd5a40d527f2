"""The server's process: started, restarted with back-off when it dies, ended for good at the stop. Stdlib only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.loop import Loop, Timer, hold_signals, release_signals
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.sandbox import libc
from jobcluster_worker.sandbox.posix_spawn import default_signals

FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 5.0
_STEADY_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class ServerProcess:
    """At most one process at a time. ``before_start`` runs before each start, in the launcher."""

    def __init__(
        self, loop: Loop, argv: Sequence[str], log_file: str, before_start: Callable[[], None]
    ) -> None:
        self.pid = 0
        self._loop = loop
        self._argv = list(argv)
        self._log_file = log_file
        self._before_start = before_start
        self._delay = FIRST_DELAY_SECONDS
        self._started_at = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Forks and executes. A failure (out of processes) is tried again like a crash."""
        self._timer = None
        self._started_at = self._loop.clock()
        try:
            self._before_start()
            self.pid = self._fork()
        except OSError as error:
            note("server_ended", "error", reason=f"cannot be started: {error}")
            self._plan()
            return
        note("server_started", pid=self.pid)

    def ended(self) -> None:
        """It was reaped."""
        self.pid = 0

    def restart(self) -> None:
        """Plans the next start; the delay doubles unless it had run steadily."""
        if self._loop.clock() - self._started_at > _STEADY_SECONDS:
            self._delay = FIRST_DELAY_SECONDS
        self._plan()

    def cancel_restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def signal(self, number: int) -> None:
        if self.pid:
            processes.send(self.pid, number)

    def _plan(self) -> None:
        self._timer = self._loop.after(self._delay, self.start)
        self._delay = min(self._delay * 2, LAST_DELAY_SECONDS)

    def _fork(self) -> int:
        launcher = os.getpid()
        hold_signals()
        try:
            pid = os.fork()
            if pid == 0:
                self._become(launcher)
            return pid
        finally:
            release_signals()

    def _become(self, launcher: int) -> None:
        """The child: its own session (a terminal's Ctrl-C is the launcher's to handle), and no life of its own
        after the launcher's death: there would be nobody to tell it of a supervisor's end.
        """
        try:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, step="PR_SET_PDEATHSIG")
            if os.getppid() != launcher:
                os._exit(127)
            os.setsid()
            default_signals()
            self._redirect()
            os.execve(self._argv[0], self._argv, os.environ)
        except BaseException as error:
            note("server_ended", "error", reason=f"cannot be executed: {error}")
        finally:
            os._exit(127)

    def _redirect(self) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        if self._log_file:
            log = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
        os.close(null)
