"""The worker's door to the C library and to raw system calls; every failure is an OSError that names its step.

Linux keeps rights and namespaces per thread, but libc's setresuid and setgroups change every thread of the process
(nptl(7)): those are made here as raw system calls, so that only the calling thread changes.
"""

import ctypes
import os
import platform
from collections.abc import Sequence
from typing import Final

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3

FALLOC_FL_KEEP_SIZE: Final = 1

IN_MODIFY: Final = 0x00000002
IN_NONBLOCK: Final = os.O_NONBLOCK
IN_CLOEXEC: Final = os.O_CLOEXEC

MACHINE: Final = platform.machine()

_NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {
        "setresuid": 117,
        "setresgid": 119,
        "setfsgid": 123,
        "setgroups": 116,
        "capset": 126,
        "seccomp": 317,
    },
    "aarch64": {
        "setresuid": 147,
        "setresgid": 149,
        "setfsgid": 152,
        "setgroups": 159,
        "capset": 91,
        "seccomp": 277,
    },
}
# The same on every architecture: added after the tables were unified in Linux 5.1.
_COMMON: Final = {"openat2": 437, "landlock_create_ruleset": 444, "landlock_restrict_self": 446}

# PyDLL would hold the GIL; CDLL lets the other threads run while a call blocks.
lib: Final = ctypes.CDLL(None, use_errno=True)


def check(result: int, step: str) -> int:
    """The result of a C call, or OSError with errno and the step's name when it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: int, step: str = "") -> int:
    """A raw system call of the calling thread alone. Raises OSError; ENOSYS on an architecture without a table."""
    number = _COMMON.get(name) or _NUMBERS.get(MACHINE, {}).get(name, -1)
    words = [ctypes.c_long(argument) for argument in arguments]
    return check(int(lib.syscall(ctypes.c_long(number), *words)), step or name)


def unshare(flags: int, step: str = "unshare") -> None:
    """New namespaces for the calling thread (os.unshare exists from Python 3.12 on only)."""
    check(int(lib.unshare(ctypes.c_int(flags))), step)


def setns(fd: int, flags: int = 0) -> None:
    """Moves the calling thread into the namespace behind `fd`."""
    check(int(lib.setns(ctypes.c_int(fd), ctypes.c_int(flags))), "setns")


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    """mount(2). Raises OSError naming what was to be mounted and where."""
    result = lib.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if options is None else options.encode(),
    )
    check(int(result), f"mount {kind or source} on {target}")


def bind(source: str, target: str, flags: int = 0) -> None:
    """Shows `source` at `target`; mount flags of a bind need a second call (mount(2))."""
    mount(source, target, None, MS_BIND)
    if flags:
        mount(source, target, None, MS_BIND | MS_REMOUNT | flags)


def umount(target: str, flags: int = 0) -> None:
    check(int(lib.umount2(os.fsencode(target), ctypes.c_int(flags))), f"umount {target}")


def prctl(option: int, *arguments: int, step: str = "prctl") -> int:
    padded = [*arguments, 0, 0, 0, 0][:4]
    return check(int(lib.prctl(ctypes.c_int(option), *(ctypes.c_ulong(word) for word in padded))), step)


def setresuid(uid: int) -> None:
    """Real, effective and saved uid of the calling thread; from root it also drops all its capabilities."""
    syscall("setresuid", uid, uid, uid, step=f"setresuid {uid}")


def setresgid(gid: int) -> None:
    syscall("setresgid", gid, gid, gid, step=f"setresgid {gid}")


def setfsgid(gid: int) -> None:
    """The group that file permissions are checked with, until the next exec (credentials(7)). Raises OSError."""
    syscall("setfsgid", gid)
    if syscall("setfsgid", gid) != gid:  # it reports no error, only the previous value (setfsgid(2))
        raise PermissionError(1, f"setfsgid {gid}: Operation not permitted")


def setgroups(groups: Sequence[int]) -> None:
    table = (ctypes.c_uint32 * max(len(groups), 1))(*groups)
    syscall("setgroups", len(groups), ctypes.addressof(table))


def capset_none() -> None:
    """Empties the calling thread's permitted, effective and inheritable capabilities."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, the calling thread
    sets = (ctypes.c_uint32 * 6)()
    syscall("capset", ctypes.addressof(header), ctypes.addressof(sets))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_seccomp(program: bytes, flags: int = 0) -> int:
    """Loads a BPF program of 8-byte instructions for the calling thread; with a listener flag, its descriptor."""
    code = ctypes.create_string_buffer(program, len(program))
    holder = _FilterProgram(len(program) // 8, ctypes.addressof(code))
    return syscall("seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(holder))


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory_fd: int, path: str, flags: int, resolve: int) -> int:
    """Opens `path` under the directory with the given RESOLVE_ flags; the descriptor closes at exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    name = ctypes.create_string_buffer(os.fsencode(path))
    return syscall(
        "openat2",
        directory_fd,
        ctypes.addressof(name),
        ctypes.addressof(how),
        ctypes.sizeof(how),
        step=f"open {path}",
    )


def reserve(fd: int, offset: int, count: int) -> None:
    """Takes room on the disk for bytes to come; the file's size stays as it is (fallocate(2)).

    :raises OSError: if there is none, or the file system cannot do so
    """
    words = (ctypes.c_int(FALLOC_FL_KEEP_SIZE), ctypes.c_long(offset), ctypes.c_long(count))
    check(int(lib.fallocate(ctypes.c_int(fd), *words)), "fallocate")


def inotify_init() -> int:
    """A non-blocking inotify descriptor that closes at exec."""
    return check(int(lib.inotify_init1(ctypes.c_int(IN_NONBLOCK | IN_CLOEXEC))), "inotify_init1")


def inotify_add_watch(fd: int, path: str | bytes, mask: int) -> int:
    result = lib.inotify_add_watch(ctypes.c_int(fd), os.fsencode(path), ctypes.c_uint32(mask))
    return check(int(result), f"inotify_add_watch {os.fsdecode(path)}")


def inotify_rm_watch(fd: int, watch: int) -> None:
    check(int(lib.inotify_rm_watch(ctypes.c_int(fd), ctypes.c_int(watch))), "inotify_rm_watch")
