"""The start by a short-lived thread: it confines itself, calls posix_spawn and ends, and its rights end with it."""

import errno
import queue
import threading

from jobcluster_worker.sandbox import confine, listener
from jobcluster_worker.sandbox.posix_spawn import posix_spawn
from jobcluster_worker.sandbox.start import Start, enter_directory, explained


class NoCloneInto(Exception):
    """This host refuses the fast way into a leaf (an outer filter answers clone3, or holds a listener already)."""


def spawn(start: Start) -> int:
    """As spawn.spawn. Raises NoCloneInto beside its errors."""
    start.own_standard_pipes()
    start.read_program_ahead()
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
            raise NoCloneInto from error
        raise
    if door is not None:
        listeners.put((door, threading.get_native_id()))
    enter_directory(start.cwd)
    try:
        return posix_spawn(start.executable, start.argv, start.env, start.fds, start.leaf_fd)
    except OSError as error:
        if into_leaf and error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise NoCloneInto from error
        raise explained(error, start.executable) from error
