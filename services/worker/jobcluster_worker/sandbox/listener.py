"""Lets the one clone3 of a start through a filter that afterwards answers every clone3 with ENOSYS.

posix_spawn into a cgroup needs clone3, whose flags a filter cannot see. So the starting thread's filter asks a
listener; the listener, in another thread, allows exactly one call of exactly that thread and closes. With no listener
left the kernel answers ENOSYS (seccomp_unotify(2)), also to what the process itself tries a moment later.
"""

import contextlib
import ctypes
import errno
import os
import select
from typing import Final

from jobcluster_worker.sandbox.libc import check, lib
from jobcluster_worker.sandbox.seccomp import CLONE3

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


class _Notification(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("nr", ctypes.c_int),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


class _Answer(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("val", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


def _ioctl(fd: int, request: int, argument: ctypes.Structure, step: str) -> None:
    check(int(lib.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.byref(argument))), step)


def allow_one_clone3(listener_fd: int, thread_id: int) -> None:
    """Waits for the thread's clone3, lets it through, and closes the listener; returns too when the thread ends."""
    try:
        poll = select.poll()
        poll.register(listener_fd, select.POLLIN)
        events = poll.poll()
        if not any(event & select.POLLIN for _, event in events):
            return  # POLLHUP: nobody uses the filter any more, the start failed before its clone
        with contextlib.suppress(InterruptedError):
            _answer(listener_fd, thread_id)
    finally:
        os.close(listener_fd)


def _answer(listener_fd: int, thread_id: int) -> None:
    asked = _Notification()
    try:
        _ioctl(listener_fd, _RECEIVE, asked, "seccomp receive")
        allowed = asked.nr == CLONE3 and asked.pid == thread_id
        answer = _Answer(asked.id, 0, 0 if allowed else -errno.ENOSYS, _CONTINUE if allowed else 0)
        _ioctl(listener_fd, _SEND, answer, "seccomp send")
    except OSError as error:
        if error.errno != errno.ENOENT:  # the caller was killed meanwhile
            raise
