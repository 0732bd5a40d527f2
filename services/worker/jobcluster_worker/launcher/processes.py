"""Processes as /proc shows them, and signals to all of a uid. Stdlib only.

A supervisor is a subreaper: whatever a task leaves behind (setsid, double fork, nohup) becomes its child, so that its
own children are all it has to look at. Only the caller's loop reaps, hence no pid here is ever reused under it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import threading
from collections.abc import Container

from jobcluster_worker.sandbox import libc

_SIGNALS = {f"SIG{name.removeprefix('SIG')}": number for name, number in signal.Signals.__members__.items()}


def signal_number(name: str) -> int:
    """TERM, SIGTERM or 15 → 15.

    :raises ValueError: there is no such signal.
    """
    if name.isascii() and name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    number = _SIGNALS.get(f"SIG{name.upper().removeprefix('SIG')}")
    if number is None:
        raise ValueError(f"no signal {name!r}")
    return int(number)


def signal_name(number: int) -> str:
    """15 → TERM; a real-time signal without a name → its number."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's. :raises OSError: the kernel refuses."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1, step="PR_SET_CHILD_SUBREAPER")


def children(pid: int | str = "self") -> list[int]:
    """The direct children, zombies too, of every thread of a process; none when it is gone.

    The kernel's list is exact as long as nobody but the caller reaps (proc_pid_children(5)). The main thread, to
    which children of an ending thread go, is read last.
    """
    found: dict[int, None] = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in reversed(os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.update(dict.fromkeys(_children_of_thread(f"/proc/{pid}/task/{thread}")))
    return list(found)


def _children_of_thread(directory: str) -> list[int]:
    with open(f"{directory}/children", "rb", buffering=0) as file:
        return [int(word) for word in file.readall().split()]


def descendants(pid: int | str = "self") -> list[int]:
    """Every process below, a parent before its children."""
    found = dict.fromkeys(children(pid))
    waiting = list(found)
    while waiting:
        new = [other for other in children(waiting.pop()) if other not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def uid_of(pid: int) -> int | None:
    """Real uid of a process (a zombie's too), None when there is none.

    /proc/PID's owner would not do: it is root for a process that made itself undumpable (proc(5)).
    """
    return _status(pid, b"\nUid:")


def parent_of(pid: int) -> int | None:
    """Pid of a process's parent, None when there is no such process."""
    return _status(pid, b"\nPPid:")


def uids_in_use() -> set[int]:
    """Real uids of all processes that this one can see."""
    uids = {uid_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    return {uid for uid in uids if uid is not None}


def _status(pid: int, name: bytes) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    at = text.find(name)
    return int(text[at + len(name) :].split(None, 1)[0]) if at >= 0 else None


def reap(pid: int) -> tuple[int, float] | None:
    """Wait status and used CPU seconds of a child that has ended, and it is gone; None while it lives.

    :raises ChildProcessError: it is no child.
    """
    found, status, used = os.wait4(pid, os.WNOHANG)
    return (status, used.ru_utime + used.ru_stime) if found else None


def next_zombie() -> int | None:
    """Some child that has ended and is not reaped."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


def send(pid: int, number: int) -> bool:
    """Signals a process of which the caller knows that its pid cannot have been reused; False when it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send_to_child(pid: int, number: int, parents: Container[int]) -> bool:
    """Signals a process if it is a child of one of these; False when it is not, or is gone.

    Others may reap it, and its number then mean a stranger: the descriptor holds the process, and its parent tells
    whether it is the one that was meant.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        # Out of descriptors: what is to be stopped must not live on for that.
        return parent_of(pid) in parents and send(pid, number)
    try:
        if parent_of(pid) not in parents:
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    finally:
        os.close(fd)
    return True


def signal_uid(uid: int, signaller: int, number: int) -> None:
    """Signals every process of a uid at once: kill(-1) walks all processes under one lock, so no fork slips through.

    It is made in a thread of its own whose effective uid alone is the task's. Its real and saved uid are
    ``signaller``, which no process has: with root there kill(-1) would reach root's processes, and with the task's
    own uid there a process of the task could kill this one (kill(2): sender's real or effective uid against target's
    real or saved uid).

    :raises OSError: the thread could not take the uid; nothing was signalled.
    """
    failure: list[OSError] = []

    def run() -> None:
        try:
            libc.syscall("setresuid", signaller, uid, signaller, step=f"setresuid {uid}")
        except OSError as error:
            failure.append(error)
            return
        # By the C library: os.kill would do, but Python must not run a handler between the two calls.
        if libc.lib.kill(ctypes.c_int(-1), ctypes.c_int(number)) == -1:
            number_of_error = ctypes.get_errno()
            if number_of_error != errno.ESRCH:
                failure.append(OSError(number_of_error, os.strerror(number_of_error)))

    thread = threading.Thread(target=run, name="signal-uid")
    try:
        thread.start()
    except RuntimeError as error:
        raise BlockingIOError(errno.EAGAIN, f"thread: {error}") from error
    thread.join()
    if failure:
        raise failure[0]
