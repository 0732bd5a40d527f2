"""The system calls a task's process may not make: a deny list as a BPF program, for x86-64 and aarch64.

Pure: `program()` gives the bytes, `libc.install_seccomp` loads them. Not denied are ptrace and process_vm_readv: the
kernel allows them within one uid only, each task has its own, and debuggers and sanitizers need them.
"""

import struct
from typing import Final

from jobcluster_worker.sandbox import libc

EPERM: Final = 1
ENOSYS: Final = 38

ALLOW: Final = 0x7FFF0000
USER_NOTIFY: Final = 0x7FC00000
ERRNO: Final = 0x00050000

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT: Final = 0x40000000

# (name, number on x86-64, number on aarch64 or None where it does not exist)
DENIED: Final[tuple[tuple[str, int, int | None], ...]] = (
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("pivot_root", 155, 41),
    ("chroot", 161, 51),
    ("unshare", 272, 97),
    ("setns", 308, 268),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fspick", 433, 433),
    ("mount_setattr", 442, 442),
    ("open_tree_attr", 467, 467),
    ("name_to_handle_at", 303, 264),
    ("open_by_handle_at", 304, 265),
    ("swapon", 167, 224),
    ("swapoff", 168, 225),
    ("quotactl", 179, 60),
    ("quotactl_fd", 443, 443),
    ("acct", 163, 89),
    ("reboot", 169, 142),
    ("kexec_load", 246, 104),
    ("kexec_file_load", 320, 294),
    ("init_module", 175, 105),
    ("finit_module", 313, 273),
    ("delete_module", 176, 106),
    ("sethostname", 170, 161),
    ("setdomainname", 171, 162),
    ("settimeofday", 164, 170),
    ("clock_settime", 227, 112),
    ("syslog", 103, 116),
    ("vhangup", 153, 58),
    ("iopl", 172, None),
    ("ioperm", 173, None),
    ("uselib", 134, None),
    ("nfsservctl", 180, 42),
    ("lookup_dcookie", 212, 18),
    ("bpf", 321, 280),
    ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282),
    ("io_uring_setup", 425, 425),
    ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    ("keyctl", 250, 219),
    ("pidfd_getfd", 438, 438),
)

CLONE3: Final = 435
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

NEW_NAMESPACES: Final = (
    libc.CLONE_NEWNS
    | libc.CLONE_NEWCGROUP
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUSER
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
)

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6], both machines little-endian
_NR, _ARCH, _ARG0_LOW, _ARG1_LOW = 0, 4, 16, 24

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15
_JUMP_BITS: Final = 0x45  # BPF_JSET
_RETURN: Final = 0x06


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)


def denied_numbers(machine: str) -> list[int]:
    """The numbers of the denied calls on a machine."""
    column = 1 if machine == "x86_64" else 2
    return [number for row in DENIED if (number := row[column]) is not None and isinstance(number, int)]


def _guarded(number: int, offset: int, bits: int) -> list[bytes]:
    """For call `number`: refused when its argument has any of the bits, else allowed; other calls go on."""
    return [
        _instruction(_JUMP_EQUAL, number, 0, 4),
        _instruction(_LOAD, offset),
        _instruction(_JUMP_BITS, bits, 0, 1),
        _instruction(_RETURN, ERRNO | EPERM),
        _instruction(_RETURN, ALLOW),
    ]


def program(machine: str = libc.MACHINE, clone3: int = ERRNO | ENOSYS) -> bytes:
    """The filter for a machine; `clone3` is what answers that call.

    clone3 takes its flags in memory, where no filter can see them; ENOSYS makes C libraries fall back to clone. A job
    may add filters of its own, but none with a listener: the newest filter wins among equal answers, and so its
    listener could let clone3 through where ours is USER_NOTIFY (seccomp(2), SECCOMP_RET_USER_NOTIF).

    :raises KeyError: no table for this machine
    """
    arch = AUDIT_ARCH[machine]
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, arch, 1, 0),  # first: numbers mean something else under int 0x80
        _instruction(_RETURN, ERRNO | EPERM),
        _instruction(_LOAD, _NR),
    ]
    if machine == "x86_64":
        code += [_instruction(_JUMP_BITS, X32_BIT, 0, 1), _instruction(_RETURN, ERRNO | EPERM)]
    code += [_instruction(_JUMP_EQUAL, CLONE3, 0, 1), _instruction(_RETURN, clone3)]
    code += _guarded(_CLONE[machine], _ARG0_LOW, NEW_NAMESPACES)
    code += _guarded(_SECCOMP[machine], _ARG1_LOW, libc.SECCOMP_FILTER_FLAG_NEW_LISTENER)
    numbers = denied_numbers(machine)
    for index, number in enumerate(numbers):
        code.append(_instruction(_JUMP_EQUAL, number, len(numbers) - index, 0))
    code += [_instruction(_RETURN, ALLOW), _instruction(_RETURN, ERRNO | EPERM)]
    return b"".join(code)
