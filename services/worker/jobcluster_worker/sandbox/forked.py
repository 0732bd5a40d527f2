"""The start by a forked child, for C libraries that cannot spawn into a cgroup leaf."""

import contextlib
import errno
import json
import os
import warnings

from jobcluster_worker.sandbox import confine
from jobcluster_worker.sandbox.posix_spawn import above_standard, default_signals
from jobcluster_worker.sandbox.start import Start, enter_directory, explained

_FAILED = 127


def spawn(start: Start) -> int:
    """As spawn.spawn; the supervisor itself never enters a leaf, it would be charged and killed with it."""
    start.own_standard_pipes()
    start.read_program_ahead()
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            # From 3.12 on Python warns of a fork beside threads; the child takes no lock another could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _live(start, writer)
    finally:
        os.close(writer)
        failure = b""
        with os.fdopen(reader, "rb") as pipe:
            failure = pipe.read()
    if failure:
        os.waitpid(child, 0)
        number, text, name = json.loads(failure)
        raise OSError(number, text, name)
    return child


def _live(start: Start, failures: int) -> None:
    """The child's life; it never returns. What fails is written to the pipe, which a successful exec closes."""
    try:
        _become(start, failures)
    except Exception as error:
        # Whatever it is: what is not said here would pass for a program that exited with 127.
        told = (
            error if isinstance(error, OSError) else OSError(errno.EINVAL, f"{type(error).__name__}: {error}")
        )
        said = (told.errno or errno.EIO, told.strerror or str(told), told.filename)
        with contextlib.suppress(Exception):
            os.write(
                failures,
                json.dumps(
                    [os.fsdecode(word) if isinstance(word, bytes) else word for word in said]
                ).encode(),
            )
    finally:
        os._exit(_FAILED)


def _become(start: Start, failures: int) -> None:
    if start.leaf_fd is not None:
        procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=start.leaf_fd)
        os.write(procs, b"0")
        os.close(procs)
    os.setsid()
    default_signals()
    confine.enter(start.confinement)
    enter_directory(start.cwd)
    standard, _ = above_standard(start.fds)
    for number, fd in enumerate(standard):
        os.dup2(fd, number, inheritable=True)
    _close_all_but(failures)
    try:
        os.execve(start.executable, list(start.argv), dict(start.env))
    except OSError as error:
        raise explained(error, start.executable) from error


def _close_all_but(kept: int) -> None:
    last = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, kept)
    os.closerange(kept + 1, max(last, kept + 2))
