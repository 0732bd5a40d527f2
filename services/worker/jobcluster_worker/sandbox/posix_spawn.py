"""posix_spawn with what os.posix_spawn lacks: a cgroup to be born in, and no descriptor but 0, 1 and 2.

It starts the child with a shared address space (vfork's way), which costs a fifth of a Python fork, and without the
GIL, so that an exec on a file system that hangs holds up only the calling thread.
"""

import ctypes
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from jobcluster_worker.sandbox.libc import lib

_SETSIGDEF: Final = 0x04
_SETSIGMASK: Final = 0x08
_SETSID: Final = 0x80
_SETCGROUP: Final = 0x100
_OPAQUE_BYTES: Final = 512  # glibc's attribute is 336 bytes, its file actions 80; musl's are no larger

CAN_ENTER_CGROUP: Final = hasattr(lib, "posix_spawnattr_setcgroup_np")  # glibc 2.39
_CAN_CLOSE_REST: Final = hasattr(lib, "posix_spawn_file_actions_addclosefrom_np")  # glibc 2.34


class _SignalSet(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint64 * 16),)


def _check(error: int, step: str) -> None:
    """posix_spawn's family returns the error number itself."""
    if error:
        raise OSError(error, f"{step}: {os.strerror(error)}")


class _Attributes:
    """Own session, every signal at its default, none blocked, and the cgroup."""

    def __init__(self, cgroup_fd: int | None) -> None:
        self.memory = ctypes.create_string_buffer(_OPAQUE_BYTES)
        _check(lib.posix_spawnattr_init(self.memory), "posix_spawnattr_init")
        every = _SignalSet()
        # Not sigfillset: it leaves out the C library's own two, which its posix_spawn would then set to be ignored.
        ctypes.memset(ctypes.byref(every), 0xFF, ctypes.sizeof(every))
        _check(lib.posix_spawnattr_setsigdefault(self.memory, ctypes.byref(every)), "setsigdefault")
        _check(lib.posix_spawnattr_setsigmask(self.memory, ctypes.byref(_SignalSet())), "setsigmask")
        flags = _SETSID | _SETSIGDEF | _SETSIGMASK
        if cgroup_fd is not None:
            _check(lib.posix_spawnattr_setcgroup_np(self.memory, ctypes.c_int(cgroup_fd)), "setcgroup")
            flags |= _SETCGROUP
        _check(lib.posix_spawnattr_setflags(self.memory, ctypes.c_short(flags)), "setflags")

    def close(self) -> None:
        lib.posix_spawnattr_destroy(self.memory)


class _FileActions:
    """Descriptors 0, 1 and 2 from the three given ones; nothing else stays open."""

    def __init__(self, fds: tuple[int, int, int]) -> None:
        self.memory = ctypes.create_string_buffer(_OPAQUE_BYTES)
        _check(lib.posix_spawn_file_actions_init(self.memory), "posix_spawn_file_actions_init")
        for number, fd in enumerate(fds):
            _check(lib.posix_spawn_file_actions_adddup2(self.memory, fd, number), "adddup2")
        if _CAN_CLOSE_REST:
            _check(lib.posix_spawn_file_actions_addclosefrom_np(self.memory, 3), "addclosefrom_np")

    def close(self) -> None:
        lib.posix_spawn_file_actions_destroy(self.memory)


def above_standard(fds: tuple[int, int, int]) -> tuple[tuple[int, int, int], list[int]]:
    """The descriptors, those below 3 duplicated out of the way (a dup2 to 0 could hide one still needed as 2)."""
    made: list[int] = []
    moved: list[int] = []
    for fd in fds:
        if fd < 3:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            made.append(fd)
        moved.append(fd)
    return (moved[0], moved[1], moved[2]), made


def strings(words: Sequence[bytes]) -> "ctypes.Array[ctypes.c_char_p]":
    """A NULL-terminated array of C strings."""
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def posix_spawn(
    executable: bytes,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    fds: tuple[int, int, int],
    cgroup_fd: int | None,
) -> int:
    """Starts a process and returns its pid.

    :raises OSError: exec's own errno (ENOENT, EACCES, ENOEXEC, E2BIG...), or the clone's; then there is no process
    """
    standard, made = above_standard(fds)
    attributes = _Attributes(cgroup_fd)
    try:
        actions = _FileActions(standard)
        try:
            pid = ctypes.c_int(0)
            error = lib.posix_spawn(
                ctypes.byref(pid),
                executable,
                actions.memory,
                attributes.memory,
                strings(argv),
                strings([name + b"=" + value for name, value in env.items()]),
            )
            if error:
                raise OSError(error, os.strerror(error), os.fsdecode(executable))
            return pid.value
        finally:
            actions.close()
    finally:
        attributes.close()
        for fd in made:
            os.close(fd)


def default_signals() -> None:
    """The same reset of signals for a forked child: Python itself ignores SIGPIPE and SIGXFSZ, exec would keep it."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
