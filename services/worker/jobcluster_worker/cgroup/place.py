"""Where in the cgroup hierarchy this process may build, and what is in the way."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobcluster_worker.cgroup.device import unescaped
from jobcluster_worker.sandbox import libc

MOUNT: Final = Path("/sys/fs/cgroup")
OUTSIDE: Final = "jobcluster-outside"  # where a delegated group's other processes are put

_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
_DELEGATE: Final = (
    "start it where cgroups are delegated: as a service with Delegate=yes, by"
    " `systemd-run --scope -p Delegate=yes ...`, or in a privileged container with a private cgroup namespace"
)


class NoPlace(Exception):
    """No cgroup of our own can be had; the text says why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Place:
    """The group in which we may make groups."""

    base: Path
    is_real_root: bool  # the kernel's own root: may hold processes beside groups with controllers
    is_container: bool  # the base is this container's alone


def find_place() -> Place:
    """Where to build. In a container that has the host's cgroup namespace, a namespace of our own is made first.

    :raises NoPlace: no cgroup v2, or none that is ours to change
    """
    if not is_cgroup2(Path("/proc/self/mountinfo").read_text(encoding="utf-8")):
        raise NoPlace(
            f"{MOUNT} is not cgroup v2 on this host; boot it with systemd.unified_cgroup_hierarchy=1"
            " (cgroup_no_v1=all), or run the worker on a host with cgroup v2"
        )
    path = own_path(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    path = path.removesuffix(f"/{OUTSIDE}") or "/"  # another launcher has put us there
    container = os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE
    if path != "/" and container:
        _make_namespace()
        path = "/"
    base = Path(f"{MOUNT}{path}")
    real_root = not (base / "cgroup.type").exists()
    if path != "/" and not is_delegated(base):
        raise NoPlace(f"the cgroup {path} is not delegated to the worker; {_DELEGATE}")
    _check_writable(base)
    return Place(base, real_root, container)


def is_cgroup2(mountinfo: str) -> bool:
    """Whether what is seen at /sys/fs/cgroup is the unified hierarchy."""
    kind = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if unescaped(left.split()[4]) == str(MOUNT):
            kind = right.split()[0]  # a later mount on the same point covers the earlier
    return kind == "cgroup2"


def own_path(proc_cgroup: str) -> str:
    """Our group on the unified hierarchy, as our cgroup namespace names it.

    :raises NoPlace: outside of the namespace, or not on that hierarchy
    """
    for line in proc_cgroup.splitlines():
        if line.startswith("0::"):
            path = line[3:]
            if path.startswith("/.."):
                raise NoPlace(f"the process is in {path}, outside of its own cgroup namespace")
            return path
    raise NoPlace("the kernel has no unified cgroup hierarchy")


def is_delegated(base: Path) -> bool:
    """systemd marks what it delegates by an attribute (systemd.resource-control(5), Delegate=)."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(base, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _make_namespace() -> None:
    """Kubernetes gives privileged pods the host's namespace: from here on `/` is this container's own group."""
    try:
        libc.unshare(libc.CLONE_NEWCGROUP | libc.CLONE_NEWNS, "unshare cgroup namespace")
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_SLAVE)
        libc.umount(str(MOUNT), libc.MNT_DETACH)  # the same file system twice on one point is refused (EBUSY)
        # Only after the unshare: mounted from the host's namespace it would change options of the whole host.
        libc.mount("cgroup2", str(MOUNT), "cgroup2", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    except OSError as error:
        raise NoPlace(
            f"no cgroup namespace of our own: {error.strerror}; run the container privileged"
        ) from error


def _check_writable(base: Path) -> None:
    trial = base / f"jobcluster-trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise NoPlace(f"{base} may not be written ({error.strerror}); {_DELEGATE}") from error
        raise NoPlace(f"no group can be made in {base}: {error.strerror}") from error
    trial.rmdir()
