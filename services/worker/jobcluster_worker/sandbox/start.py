"""One start: what is to be executed, and the steps that both ways of starting share."""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobcluster_worker.sandbox import cache
from jobcluster_worker.sandbox.confine import Confinement


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

    def own_standard_pipes(self) -> None:
        """/dev/stdout and /dev/stderr open a pipe again by its owner's rights: it must be the task's."""
        uid, gid = self.confinement.uid, self.confinement.gid
        if uid is None or gid is None:
            return
        for fd in self.fds:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, uid, gid)

    def read_program_ahead(self) -> None:
        """Where the task has a memory limit of its own, see cache.py."""
        if self.leaf_fd is not None:
            cache.read_ahead(self.executable)


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
