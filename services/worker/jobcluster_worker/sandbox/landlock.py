"""A Landlock domain around a task: no signal and no abstract unix socket across it (Linux 6.12)."""

import contextlib
import ctypes
import os
from typing import Final

from jobcluster_worker.sandbox.libc import syscall

_CREATE_RULESET_VERSION: Final = 1
_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1
_SCOPE_SIGNAL: Final = 2
_ABI_WITH_SCOPES: Final = 6


class _Ruleset(ctypes.Structure):
    # Handles no file access: a ruleset that handles any denies renames between directories too (landlock(7), REFER).
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def available() -> bool:
    """Whether this kernel has scopes and the Landlock module is active."""
    with contextlib.suppress(OSError):
        return syscall("landlock_create_ruleset", 0, 0, _CREATE_RULESET_VERSION) >= _ABI_WITH_SCOPES
    return False


def restrict() -> None:
    """Puts the calling thread into a domain of its own; needs no_new_privs. Raises OSError."""
    ruleset = _Ruleset(0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    fd = syscall("landlock_create_ruleset", ctypes.addressof(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        syscall("landlock_restrict_self", fd, 0)
    finally:
        os.close(fd)
