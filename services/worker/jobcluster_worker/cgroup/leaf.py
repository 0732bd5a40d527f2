"""The cgroup of one task: its limits as the kernel holds them, signals to all in it, counters, and its end."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jobcluster_worker.cgroup import cpu, device, files, io, memory, pids, pressure

Enforcement = dict[str, dict[str, Any]]
_ROUNDS: Final = 20


class Leaf:
    """A leaf that exists. `fd` is its directory, for a start into it; it closes at exec.

    `effective` has the names of limits, read from the kernel, None = no limit; `enforced` says {ok, why} per resource.
    """

    def __init__(self, path: Path, io_device: str | None, enforced: Enforcement) -> None:
        self.path = path
        self.enforced = enforced
        self._io_device = io_device
        self._events_fd: int | None = None
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.effective = self.read_limits()
        except BaseException:
            self.close()
            raise

    def read_limits(self) -> dict[str, Any]:
        """What the kernel's files say now, never what was asked."""
        cpu_max = files.read(self.path / cpu.MAX_FILE)
        memory_max = files.read(self.path / memory.MAX_FILE)
        oom_group = files.read(self.path / memory.OOM_GROUP_FILE)
        pids_max = files.read(self.path / pids.MAX_FILE)
        io_max = files.read(self.path / io.MAX_FILE)
        return {
            "cpu": None if cpu_max is None else cpu.parse_max(cpu_max),
            "memory_bytes": None if memory_max is None else memory.parse_max(memory_max),
            "pids": None if pids_max is None else pids.parse_max(pids_max),
            "io": io.parse_max(io_max or "", self._io_device),
            "oom": None if oom_group is None else memory.parse_oom_group(oom_group),
        }

    def signal(self, number: int) -> int:
        """Sends a signal to every process in the leaf, once each, those too that are forked meanwhile; how many."""
        if number == signal.SIGKILL:
            self.kill()
            return 0
        reached: set[int] = set()
        for _ in range(_ROUNDS):  # a fork storm outruns any number of rounds: that is what kill is for
            new = [pid for pid in self.processes() if pid not in reached]
            if not new:
                break
            for pid in new:
                reached.add(pid)
                self._signal_one(pid, number)
        return len(reached)

    def _signal_one(self, pid: int, number: int) -> None:
        # The descriptor holds the process; only if its pid is still in the leaf now was it that one, not a successor.
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if pid in self.processes():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def processes(self) -> list[int]:
        """The pids in the leaf; none once it is gone."""
        return files.processes(self.path)

    def kill(self) -> None:
        """Kills all at once, also a fork storm (cgroup.kill, Linux 5.14; before, frozen first)."""
        try:
            files.write(self.path / "cgroup.kill", "1")
        except FileNotFoundError:
            if self.path.exists():
                self._kill_frozen()

    def _kill_frozen(self) -> None:
        files.write(self.path / "cgroup.freeze", "1")
        for pid in self.processes():
            self._signal_one(pid, signal.SIGKILL)
        files.write(
            self.path / "cgroup.freeze", "0"
        )  # a frozen process dies too, but new kernels thaw for it

    def populated(self) -> bool:
        """Whether a live process is in it. A zombie does not count."""
        return files.populated(files.read(self.path / "cgroup.events") or "")

    def events_fd(self) -> int:
        """cgroup.events, opened once: EPOLLPRI tells of a change of `populated`. Always readable: never EPOLLIN."""
        if self._events_fd is None:
            self._events_fd = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        return self._events_fd

    def usage(self) -> dict[str, Any]:
        """What the kernel counted so far, by the names of Usage; None = it does not count that here."""
        cpu_stat = files.read(self.path / cpu.STAT_FILE)
        peak = files.read(self.path / memory.PEAK_FILE)
        events = files.read(self.path / memory.EVENTS_FILE)
        io_stat = files.read(self.path / io.STAT_FILE)
        pids_peak = files.read(self.path / pids.PEAK_FILE)
        counted: dict[str, Any] = {
            "cpu_seconds": None,
            "cpu_throttled_seconds": None,
            "memory_peak_bytes": None if peak is None else int(peak),
            "oom_kills": None,
            "io_read_bytes": None,
            "io_write_bytes": None,
            "pids_peak": None if pids_peak is None else int(pids_peak),
            **pressure.parse({name: self._read_pressure(name) for name in pressure.RESOURCES}),
        }
        if cpu_stat is not None:
            counted |= cpu.parse_stat(cpu_stat)
        if events is not None:
            counted |= memory.parse_events(events)
        if io_stat is not None:
            counted |= io.parse_stat(
                io_stat, [name for name in io.devices_of(io_stat) if device.is_stacked(name)]
            )
        return counted

    def _read_pressure(self, resource: str) -> str | None:
        try:
            return files.read(self.path / pressure.file_of(resource))
        except OSError:  # EOPNOTSUPP: the kernel can, and was told not to
            return None

    def close(self) -> None:
        """Closes our descriptors; the leaf stays."""
        for fd in (self.fd, self._events_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.fd, self._events_fd = -1, None

    def remove(self, deadline_seconds: float = 1.0) -> None:
        """Removes leaf and, after its last one, the job's group; closes it. To be called when it is not populated.

        :raises OSError: EBUSY, a process is still in it
        """
        self.close()
        remove_group(self.path, deadline_seconds)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def remove_group(path: Path, deadline_seconds: float) -> None:
    """rmdir, patient with a kernel that is still taking the last process apart (EBUSY right after populated 0)."""
    for last in _tries(deadline_seconds):
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or last:
                raise


def _tries(deadline_seconds: float) -> Iterator[bool]:
    """Yields whether it is the last try, with short rests between."""
    deadline = time.monotonic() + deadline_seconds
    rest = 0.0005
    while (left := deadline - time.monotonic()) > 0:
        yield False
        time.sleep(min(rest, left))
        rest = min(rest * 2, 0.05)
    yield True
