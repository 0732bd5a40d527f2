"""What a task sees of the file system: its own /tmp, /dev and /proc, its work directory, and nothing of ours.

All in a mount namespace of the calling thread. The fixed points below ROOT lie on a tmpfs in the launcher's own mount
namespace, so that the host never sees them and they vanish with the launcher, however it ends.
"""

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from jobcluster_worker.sandbox import libc

ROOT: Final = "/run/jobcluster"
WORK: Final = f"{ROOT}/work"
TEMPLATES: Final = f"{ROOT}/templates"
_PRIVATE: Final = f"{ROOT}/private"
_DEVICES: Final = f"{ROOT}/dev"
EMPTY_DIRECTORY: Final = f"{ROOT}/empty"
_EMPTY_FILE: Final = f"{ROOT}/nothing"

# Hidden from every task: limits could be read and, by a root of some kind, changed there; secrets of the container.
ALWAYS_HIDDEN: Final = ("/sys/fs/cgroup", "/run/secrets", "/var/run/secrets")

_NODES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_QUIET: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def make_fixed_points() -> None:
    """A mount namespace of the launcher's own with the fixed points in it; mounts of the host still arrive.

    :raises OSError: naming the step; what was mounted before it vanishes with the namespace
    """
    libc.unshare(libc.CLONE_NEWNS, "unshare mount namespace")
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_SLAVE)
    os.makedirs(ROOT, mode=0o755, exist_ok=True)
    libc.mount("jobcluster", ROOT, "tmpfs", libc.MS_NOSUID | libc.MS_NOEXEC, "mode=0755,size=1m")
    for directory in (WORK, TEMPLATES, _PRIVATE, EMPTY_DIRECTORY):
        os.mkdir(directory)
        os.chmod(directory, 0o755)
    os.close(os.open(_EMPTY_FILE, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    _make_devices()


def _make_devices() -> None:
    os.mkdir(_DEVICES)
    os.chmod(_DEVICES, 0o755)
    for name in ("pts", "shm"):
        os.mkdir(f"{_DEVICES}/{name}")
    for name, (major, minor) in _NODES.items():
        try:
            os.mknod(f"{_DEVICES}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(f"{_DEVICES}/{name}", 0o666)
        except PermissionError:  # in a user namespace no node can be made, but shown
            os.close(os.open(f"{_DEVICES}/{name}", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o666))
            libc.bind(f"/dev/{name}", f"{_DEVICES}/{name}")
    for name, target in _LINKS.items():
        os.symlink(target, f"{_DEVICES}/{name}")


def confine(
    work_directory: Path, template_directory: Path | None, hide: Iterable[Path], own_proc: bool
) -> None:
    """In the calling thread's new mount namespace: what the task sees. Raises OSError naming the step."""
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    # First, while their sources can still be seen.
    libc.bind(str(work_directory), WORK)
    if template_directory is not None:
        libc.bind(str(template_directory), TEMPLATES, libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV)
    _own_temporary_files_and_devices()
    for path in (*ALWAYS_HIDDEN, *map(str, hide)):
        _mask(path)
    if own_proc:
        # Read-only too: core_pattern, sysrq-trigger and the like stay shut even for a root of some kind.
        libc.mount("proc", "/proc", "proc", _QUIET | libc.MS_RDONLY, "hidepid=2")


def _own_temporary_files_and_devices() -> None:
    """A tmpfs of the task's own: its pages are charged to the task, and go with it (they outlive processes)."""
    libc.mount("tmpfs", _PRIVATE, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=0755")
    for name in ("tmp", "shm"):
        os.mkdir(f"{_PRIVATE}/{name}")
        os.chmod(f"{_PRIVATE}/{name}", 0o1777)
    libc.bind(_DEVICES, "/dev")
    libc.mount(
        "devpts", "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"
    )
    libc.bind(f"{_PRIVATE}/shm", "/dev/shm")
    libc.bind(f"{_PRIVATE}/tmp", "/tmp")
    if os.path.isdir("/var/tmp"):
        libc.bind(f"{_PRIVATE}/tmp", "/var/tmp")


def _mask(path: str) -> None:
    """Nothing where `path` is; a path that is not there needs nothing."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    libc.bind(EMPTY_DIRECTORY if stat.S_ISDIR(mode) else _EMPTY_FILE, path)


def loopback_up() -> None:
    """A new network namespace has a loopback that is down; programs expect 127.0.0.1 to answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        fcntl.ioctl(door, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
