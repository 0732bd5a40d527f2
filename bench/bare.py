"""The bare limits: what the machine and the libraries can do with nothing of ours between."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import time


def cpu_seconds() -> float:
    """CPU time of this process and of its children that were waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def spawn(count: int) -> tuple[float, float]:
    """posix_spawn and wait of `true`, one after the other: (jobs per second, CPU seconds per job)."""
    program = shutil.which("true") or "/bin/true"
    began, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        os.waitpid(os.posix_spawn(program, ["true"], {}), 0)
    return count / (time.perf_counter() - began), (cpu_seconds() - cpu) / count


def first_byte(count: int) -> float:
    """From posix_spawn of `echo` to its first byte in a pipe, median seconds."""
    program = shutil.which("echo") or "/bin/echo"
    times = []
    for _ in range(count):
        began = time.perf_counter()
        read, write = os.pipe()
        pid = os.posix_spawn(program, ["echo", "x"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
        os.close(write)
        os.read(read, 1)
        times.append(time.perf_counter() - began)
        os.close(read)
        os.waitpid(pid, 0)
    return statistics.median(times)
