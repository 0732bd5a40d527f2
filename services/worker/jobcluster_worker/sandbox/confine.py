"""The confinement of one task: entered by the thread (or forked child) that starts it, and gone with it.

What this host can give is found out once, by `prepare_host`; what it can give and then fails fails the start. So no
process ever runs with more rights than its siblings.
"""

import errno
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jobcluster_worker.sandbox import libc, mounts, rights
from jobcluster_worker.sandbox.powers import Powers, find_powers

WORK = mounts.WORK
TEMPLATES = mounts.TEMPLATES


@dataclass(slots=True)
class Confinement:
    """What one task is to be confined to. As a plain user uid and gid are None and paths stay the real ones."""

    uid: int | None
    gid: int | None
    work_directory: Path
    template_directory: Path | None = None
    hide: list[Path] = field(default_factory=list)
    network: str = "host"
    leaf_directory: Path | None = None
    inside: Callable[[], None] | None = None
    """Called where the task's own mounts are made and no right is dropped yet."""


_powers: Powers | None = None


def prepare_host() -> Powers:
    """Finds out what this host can give and, as root, makes a mount namespace of our own with the fixed points.

    To be called once by the launcher while it has one thread, before it forks supervisors; again it changes nothing.
    """
    global _powers
    if _powers is None:
        # Inherited by all: a core dump of ours would hold keys, one of a task would fill the disk unasked.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _powers = find_powers()
    return _powers


def job_paths(confinement: Confinement) -> tuple[str, str]:
    """Work directory and template directory (empty without one) as the task sees them."""
    if _known_powers().mounts:
        return WORK, "" if confinement.template_directory is None else TEMPLATES
    templates = confinement.template_directory
    return str(confinement.work_directory), "" if templates is None else str(templates)


def what_is_enforced() -> dict[str, str]:
    """Each part of the confinement by name: "yes", or why this worker cannot have it."""
    return _known_powers().in_words()


def enter(confinement: Confinement, with_listener: bool = False, enters_leaf: bool = False) -> int | None:
    """Confines the calling thread; what it starts afterwards is confined, and cannot get out.

    :param with_listener: make clone3 ask a listener, whose descriptor is returned (see listener.py)
    :param enters_leaf: keep, until exec, the file-system group that may enter a cgroup leaf
    :raises OSError: naming the step; the thread must end then, and start nothing
    """
    powers = _known_powers()
    spaces = libc.CLONE_FS
    if powers.mounts:
        spaces |= libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
    if confinement.network == "none":
        if not powers.network:
            raise OSError(
                errno.EPERM, 'network "none" cannot be had here: ' + powers.in_words()["network none"]
            )
        spaces |= libc.CLONE_NEWNET
    libc.unshare(spaces)
    os.umask(0o022)
    if powers.mounts:
        mounts.confine(
            confinement.work_directory, confinement.template_directory, confinement.hide, powers.own_proc
        )
    if confinement.inside is not None:
        confinement.inside()
    if confinement.network == "none":
        mounts.loopback_up()
    if powers.root:
        _drop_rights(confinement, powers, enters_leaf)
    return rights.close_the_door(powers.seccomp, powers.scopes, with_listener)


def _drop_rights(confinement: Confinement, powers: Powers, enters_leaf: bool) -> None:
    uid, gid = confinement.uid or 0, confinement.gid or 0
    if uid <= 0 or gid <= 0:  # -1 would keep root's
        raise OSError(errno.EPERM, "a task needs a uid and a gid of its own that are not root's")
    if powers.bounding_set:
        rights.drop_bounding_set(powers.last_capability)
    rights.become(uid, gid, enters_leaf)


def _known_powers() -> Powers:
    if _powers is None:
        raise OSError(errno.EPERM, "prepare_host was not called before a start")
    return _powers
