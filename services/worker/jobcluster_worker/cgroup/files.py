"""Reading and writing the kernel's cgroup files, with errors that name file and value."""

import os
from pathlib import Path


def write(path: Path, value: str) -> None:
    """One value in one write. Raises OSError naming file and value."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {error.strerror}", str(path)) from error


def read(path: Path) -> str | None:
    """The text of a file; None where this kernel, or a controller that is not on, does not have it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode()
    except OSError as error:
        raise OSError(error.errno, f"read: {error.strerror}", str(path)) from error
    finally:
        os.close(fd)


def processes(group: Path) -> list[int]:
    """The pids in a group (not below it); 0 stands for one that our pid namespace cannot see."""
    return [int(word) for word in (read(group / "cgroup.procs") or "").split()]


def populated(text: str) -> bool:
    """Whether cgroup.events says that a live process is in the group or below it."""
    return "populated 1" in text
