"""What a hostile task would try; run as a task, prints JSON {attempt: "denied" or what it got}."""

import ctypes
import glob
import json
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

libc = ctypes.CDLL(None, use_errno=True)
secrets = sys.argv[1].split(":")
secret, supervisor, leaf, port = secrets[0], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
X86 = os.uname().machine == "x86_64"
ATTEMPTS: dict[str, Callable[[], object]] = {}


def system(number: int, *arguments: object) -> int:
    """A raw system call; raises OSError."""
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)


def library(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(100)
    if not content:  # what is hidden is an empty file
        raise PermissionError(1, "nothing in it")
    return content


def reach(path: str) -> object:
    """Reads a file, talks to a socket."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return read(path)
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        return "an answer"


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def found(pattern: str) -> list[str]:
    """Files that exist and can be read; none is a denial."""
    names = [name for name in glob.glob(pattern) if os.access(name, os.R_OK)]
    if not names:
        raise PermissionError(1, "nothing to be seen")
    return names


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(1, done.stderr.decode()[:80])


def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect("\0jobcluster-test-door")


def worker_port() -> None:
    with socket.create_connection(("127.0.0.1", port), 2):
        pass


def still_open(fd: int) -> bool:
    with suppress(OSError):
        return bool(os.fstat(fd))
    return False


def leaked() -> object:
    extra = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and still_open(fd)]
    if not extra:
        raise PermissionError(1, "nothing leaked")
    return extra


def int80() -> object:
    """getpid by the 32-bit gate."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    result = function()
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


ATTEMPTS |= {
    "leaked descriptors": leaked,  # first, before others open some
    "read a secret by its path": lambda: read(secret),
    "list the data directory": lambda: found(os.path.dirname(secret) + "/*"),
    "another process's environment": lambda: read(f"/proc/{supervisor}/environ"),
    "another process's memory": lambda: read(f"/proc/{supervisor}/mem"),
    "another process's descriptors": lambda: os.listdir(f"/proc/{supervisor}/fd"),
    "another process's root": lambda: os.listdir(f"/proc/{supervisor}/root/"),
    "another process's command line": lambda: read(f"/proc/{supervisor}/cmdline"),
    "init's command line": lambda: read("/proc/1/cmdline"),
    "secret through the root of init": lambda: read("/proc/1/root" + secret),
    "cgroup files": lambda: found("/sys/fs/cgroup/*"),
    "leave the cgroup": lambda: write("/sys/fs/cgroup/cgroup.procs", "0"),
    "raise the memory limit": lambda: write(f"{leaf}/memory.max", "max"),
    "core_pattern": lambda: write("/proc/sys/kernel/core_pattern", "|/tmp/x"),
    "sysrq": lambda: write("/proc/sysrq-trigger", "h"),
    "modprobe path": lambda: write("/proc/sys/kernel/modprobe", "/tmp/x"),
    "kernel memory": lambda: read("/proc/kcore"),
    "kernel messages": lambda: read("/dev/kmsg"),
    "disks": lambda: found("/dev/ubd*") + found("/dev/sd*"),
    "mknod": lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(98, 0)),
    "mount": lambda: library("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "umount": lambda: library("umount2", b"/proc", 2),
    "remount": lambda: library("mount", b"none", b"/proc", None, 32, None),
    "pivot_root": lambda: system(155 if X86 else 41, b"/tmp", b"/tmp"),
    "chroot": lambda: os.chroot("/tmp"),
    "new mount api": lambda: system(430, b"tmpfs", 0),
    "unshare user": lambda: library("unshare", 0x10000000),
    "unshare mount": lambda: library("unshare", 0x00020000),
    "unshare network": lambda: library("unshare", 0x40000000),
    "clone a user namespace": lambda: system(56 if X86 else 220, ctypes.c_ulong(0x10000000 | 17), 0, 0, 0, 0),
    "clone3": lambda: system(435, (ctypes.c_uint64 * 11)(0x10000000), 88),
    "setns of init": lambda: library("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "setns of itself": lambda: library("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
    "ptrace the supervisor": lambda: library("ptrace", 16, supervisor, 0, 0),
    "ptrace init": lambda: library("ptrace", 16, 1, 0, 0),
    "kill the supervisor": lambda: os.kill(supervisor, signal.SIGKILL),
    "kill init": lambda: os.kill(1, signal.SIGKILL),
    "setuid root": lambda: os.setuid(0),
    "setgroups": lambda: os.setgroups([0]),
    "su or sudo": lambda: run("su", "-c", "true"),
    "bpf": lambda: system(321 if X86 else 280, 0, 0, 0),
    "perf": lambda: system(298 if X86 else 241, 0, 0, -1, -1, 0),
    "keyring": lambda: system(250 if X86 else 219, 0, -3, 0),
    "io_uring": lambda: system(425, 1, (ctypes.c_uint8 * 120)()),
    "userfaultfd": lambda: system(323 if X86 else 282, 0),
    "load a module": lambda: system(313 if X86 else 273, 0, b"", 0),
    "reboot": lambda: library("reboot", 0x01234567),
    "host name": lambda: library("sethostname", b"x", 1),
    "clock": lambda: library("clock_settime", 0, (ctypes.c_long * 2)(0, 0)),
    "open by handle": lambda: system(303 if X86 else 264, -100, b"/", (ctypes.c_uint8 * 200)(128), 0, 0),
    "lower oom score": lambda: write("/proc/self/oom_score_adj", "-1000"),
    "raise a hard limit": lambda: __import__("resource").setrlimit(4, (-1, -1)),  # RLIMIT_CORE
    "write a template": lambda: write("/run/jobcluster/templates/x", "x"),
    "write to the system": lambda: write("/etc/jobcluster-probe", "x"),
    "an abstract socket": abstract_socket,
    "the worker's port": worker_port,
}
for path in secrets[1:]:
    ATTEMPTS[f"reach {path}"] = lambda path=path: reach(path)  # type: ignore[misc]
if X86:
    ATTEMPTS["int 0x80"] = int80
    ATTEMPTS["x32"] = lambda: system(0x40000000 | 39)

said = {}
for name, attempt in ATTEMPTS.items():
    try:
        said[name] = f"got {attempt()!r}"
    except (OSError, ValueError) as error:
        said[name] = f"denied: {error}"
sys.stdout.write(json.dumps(said))
