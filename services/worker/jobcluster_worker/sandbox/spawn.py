"""Starts the process of one task: confined, in its cgroup leaf before its first instruction, and with nothing of ours.

Two ways with one result. The fast one: a short-lived thread confines itself and calls posix_spawn; thread and rights
end together. The other, for C libraries that cannot spawn into a cgroup (glibc before 2.39): a forked child enters the
leaf, confines itself and execs.
"""

import contextlib
import errno
import os
import queue
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jobcluster_worker.sandbox import confine, forked, listener, rights
from jobcluster_worker.sandbox.confine import Confinement
from jobcluster_worker.sandbox.posix_spawn import CAN_ENTER_CGROUP, posix_spawn

# Jobs are to be killed before the worker when the machine itself is out of memory.
OOM_SCORE_ADJ: Final = 500


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be executed, and with which descriptors as 0, 1 and 2."""

    argv: Sequence[bytes]
    executable: bytes
    env: Mapping[bytes, bytes]
    fds: tuple[int, int, int]
    cwd: bytes
    leaf_fd: int | None
    confinement: Confinement


class _NoCloneInto(Exception):
    """This host refuses the fast way into a leaf (an outer filter answers clone3, or holds a listener already)."""


_fast_way_into_leaf: bool = CAN_ENTER_CGROUP


def spawn(
    argv: Sequence[bytes],
    executable: bytes,
    env: Mapping[bytes, bytes],
    fds: tuple[int, int, int],
    cwd: bytes,
    leaf_fd: int | None,
    confinement: Confinement,
) -> int:
    """Starts the process and returns its pid; it is a child of the calling process, leader of its own session.

    Blocks until exec has happened or failed, without the GIL. Callable from any thread.

    :raises OSError: exec's errno (ENOENT, EACCES, ENOEXEC...) or that of the step of confinement that failed, which
        its text names; then nothing was executed and nothing is left behind
    """
    global _fast_way_into_leaf
    start = Start(argv, executable, env, fds, cwd, leaf_fd, confinement)
    _own_standard_pipes(start)
    if leaf_fd is None or _fast_way_into_leaf:
        try:
            return _settle(_spawn_by_thread(start))
        except _NoCloneInto:
            _fast_way_into_leaf = False
    return _settle(forked.spawn(start))


def _own_standard_pipes(start: Start) -> None:
    """/dev/stdout and /dev/stderr open a pipe again by its owner's rights: it must be the task's."""
    uid, gid = start.confinement.uid, start.confinement.gid
    if uid is None or gid is None:
        return
    for fd in start.fds:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, gid)


def _settle(pid: int) -> int:
    score = f"/proc/{pid}/oom_score_adj"
    # It may have ended already; and no start fails for want of this.
    with contextlib.suppress(OSError), open(score, "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE_ADJ))
    return pid


def _spawn_by_thread(start: Start) -> int:
    results: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
    listeners: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def live() -> None:
        try:
            results.put(_confine_and_spawn(start, listeners))
        except Exception as error:  # carried to the caller, raised there
            results.put(error)
        finally:
            listeners.put(None)

    thread = threading.Thread(target=live, name="start", daemon=True)
    thread.start()
    if (asked := listeners.get()) is not None:
        listener.allow_one_clone3(*asked)
    thread.join()
    result = results.get()
    if isinstance(result, Exception):
        raise result
    return result


def _confine_and_spawn(start: Start, listeners: "queue.SimpleQueue[tuple[int, int] | None]") -> int:
    into_leaf = start.leaf_fd is not None
    try:
        door = confine.enter(start.confinement, with_listener=into_leaf, enters_leaf=into_leaf)
    except OSError as error:
        if into_leaf and error.errno == errno.EBUSY and "seccomp" in (error.strerror or ""):
            raise _NoCloneInto from error
        raise
    if door is not None:
        listeners.put((door, threading.get_native_id()))
    enter_directory(start.cwd)
    try:
        return posix_spawn(start.executable, start.argv, start.env, start.fds, start.leaf_fd)
    except OSError as error:
        if into_leaf and error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise _NoCloneInto from error
        raise explained(error, start.executable) from error


def enter_directory(cwd: bytes) -> None:
    """chdir of the calling thread alone (it has unshared it), with the task's rights and in its view."""
    try:
        os.chdir(cwd)
    except OSError as error:
        raise OSError(error.errno, f"cwd: {error.strerror}", os.fsdecode(cwd)) from error


def explained(error: OSError, executable: bytes) -> OSError:
    """Exec says ENOENT also when a script's interpreter is missing: told apart here, in the task's own view."""
    if error.errno != errno.ENOENT or not os.path.exists(executable):
        return error
    try:
        with open(executable, "rb") as file:
            first_line = file.readline(256)
    except OSError:
        return error
    if not first_line.startswith(b"#!"):
        return OSError(errno.ENOENT, "its loader is not there", os.fsdecode(executable))
    interpreter = first_line[2:].split()[0] if first_line[2:].split() else b""
    return OSError(
        errno.ENOENT, f"its interpreter {os.fsdecode(interpreter)!r} is not there", os.fsdecode(executable)
    )


__all__ = ["ENTRY_GID", "Start", "spawn"]
ENTRY_GID = rights.ENTRY_GID
