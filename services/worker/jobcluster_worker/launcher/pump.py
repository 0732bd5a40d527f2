"""Moves a task's output from its pipes into its log, in the order of capture. Stdlib only."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import partial

from jobcluster_worker.launcher.loop import READ, Loop, Timer
from jobcluster_worker.output.log import OutputLog

# One buffer for all: every pump of a process runs in its one loop.
_BUFFER = bytearray(256 * 1024)
_VIEW = memoryview(_BUFFER)
# A turn of the loop takes so much from one pipe, so that a flood delays no neighbour.
_READS_PER_TURN = 4
# Root may have it; a plain user may not go over fs.pipe-user-pages-soft and keeps 64 KiB.
_BIG_PIPE_BYTES = 256 * 1024
_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032


class Pump:
    """The reading ends of one task's pipes and the log they go to. ``on_limit`` is called once, at the cap."""

    def __init__(
        self, loop: Loop, log: OutputLog, readers: dict[int, int], on_limit: Callable[[], None]
    ) -> None:
        """``readers`` maps a kind (0 stdout, 1 stderr) to a non-blocking descriptor, which is the pump's from now."""
        self._loop = loop
        self._log = log
        self._readers = readers
        self._on_limit = on_limit
        self._flush: Timer | None = None
        self._limit_told = False
        self._grown: set[int] = set()
        for kind, fd in readers.items():
            loop.watch(fd, READ, partial(self._turn, kind))

    def drain(self) -> None:
        """Takes what is in the pipes and closes them: to their end, or, where something outside the task still holds
        one open, as much as it can have held when the task's last process was gone.
        """
        for kind, fd in list(self._readers.items()):
            room = fcntl.fcntl(fd, _F_GETPIPE_SZ)
            while room > 0 and (taken := self._read(kind, fd)) > 0:
                room -= taken
            self._close(kind)
        if self._flush is not None:
            self._flush.cancel()

    def _turn(self, kind: int, _events: int) -> None:
        fd = self._readers[kind]
        for _ in range(_READS_PER_TURN):
            taken = self._read(kind, fd)
            if taken == 0:
                self._close(kind)
            if taken <= 0:
                break
            self._grow(kind, fd, taken)
        if self._log.must_stop and not self._limit_told:
            self._limit_told = True
            self._on_limit()
        self._plan_flush()

    def _read(self, kind: int, fd: int) -> int:
        """Bytes taken; 0 at the end, -1 when there is nothing now."""
        try:
            taken = os.readv(fd, [_BUFFER])
        except BlockingIOError:
            return -1
        if taken:
            self._log.write(kind, _VIEW[:taken], self._loop.clock())
        return taken

    def _grow(self, kind: int, fd: int, taken: int) -> None:
        if taken >= 64 * 1024 and kind not in self._grown:
            self._grown.add(kind)
            try:
                fcntl.fcntl(fd, _F_SETPIPE_SZ, _BIG_PIPE_BYTES)
            except OSError:
                return

    def _plan_flush(self) -> None:
        due = self._log.next_flush
        if due is not None and self._flush is None:
            self._flush = self._loop.at(due, self._do_flush)

    def _do_flush(self) -> None:
        self._flush = None
        self._log.flush(self._loop.clock())
        self._plan_flush()

    def _close(self, kind: int) -> None:
        fd = self._readers.pop(kind)
        self._loop.unwatch(fd)
        os.close(fd)
