"""What confinement this host and this user can have, tried out once and for real."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jobcluster_worker.sandbox import landlock, libc, mounts, rights, seccomp

_TRIAL_UID: Final = rights.ENTRY_GID
_PLAIN_USER: Final = "needs root"


@dataclass(frozen=True, slots=True)
class Powers:
    """Each power, and for one that is missing the reason in `why` under the field's name."""

    root: bool
    mounts: bool = False
    own_proc: bool = False
    network: bool = False
    bounding_set: bool = False
    seccomp: bool = False
    scopes: bool = False
    last_capability: int = 0
    why: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> dict[str, str]:
        """For people: what holds for a task's process here, and why the rest does not."""

        def said(name: str, holds: bool, missing: str = _PLAIN_USER) -> str:
            return "yes" if holds else "no: " + self.why.get(name, missing)

        return {
            "own uid, no capabilities": said("root", self.root and "root" not in self.why),
            "no_new_privs": "yes",
            "mount, ipc, uts namespaces": said("mounts", self.mounts),
            "other processes hidden in /proc": said("own_proc", self.own_proc),
            "network none": said("network", self.network),
            "system call filter": said("seccomp", self.seccomp),
            "no signals or abstract sockets across": said(
                "scopes", self.scopes, "needs Linux 6.12 with Landlock"
            ),
        }


def find_powers() -> Powers:
    """Tries each power; as root it leaves the process in a mount namespace of its own, if it may have one."""
    why: dict[str, str] = {}
    root = rights.is_root()
    if root:
        try:
            mounts.make_fixed_points()
        except OSError as error:
            why["mounts"] = _reason(error)
    trials: dict[str, Callable[[], None]] = {"seccomp": _try_filter}
    if root:
        trials |= {"root": _try_uid, "bounding_set": _try_bounding_set, "network": _try_network}
        if "mounts" not in why:
            trials |= {"mounts": _try_mounts, "own_proc": _try_proc}
    for name, trial in trials.items():
        if reason := _in_child(trial):
            why[name] = reason
    if root and "mounts" in why:
        why["own_proc"] = "needs the mount namespace"
    has = {name: name in trials and name not in why for name in (*trials, "mounts", "own_proc")}
    if root:
        has["root"] = True  # without a uid of its own a start fails: it never runs as root
    return Powers(
        root=root,
        mounts=has.get("mounts", False),
        own_proc=has.get("mounts", False) and has.get("own_proc", False),
        network=has.get("network", False),
        bounding_set=has.get("bounding_set", False),
        seccomp=has["seccomp"],
        scopes=landlock.available(),
        last_capability=rights.last_capability() if root else 0,
        why=why,
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _in_child(trial: Callable[[], None]) -> str:
    """Runs a trial in a forked child, which it may change as it likes; the reason of its failure, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        reason = "failed"
        try:
            trial()
            reason = ""
        except OSError as error:
            reason = _reason(error)
        finally:
            with contextlib.suppress(OSError):
                os.write(writer, json.dumps(reason).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return str(json.loads(said)) if said else "the trial was killed"


def _try_uid() -> None:
    rights.become(_TRIAL_UID, _TRIAL_UID, enters_leaf=False)


def _try_bounding_set() -> None:
    rights.drop_bounding_set(rights.last_capability())


def _try_network() -> None:
    libc.unshare(libc.CLONE_NEWNET, "unshare network namespace")
    mounts.loopback_up()


def _try_filter() -> None:
    if libc.MACHINE not in seccomp.AUDIT_ARCH:
        raise OSError(seccomp.ENOSYS, f"no table of system calls for {libc.MACHINE}")
    rights.close_the_door(filtered=True, scoped=False, with_listener=False)


def _try_mounts() -> None:
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS)
    mounts.confine(Path(mounts.EMPTY_DIRECTORY), None, [], own_proc=False)


def _try_proc() -> None:
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) < (5, 8):
        # Before, all mounts of one pid namespace's /proc share their options: we would hide the host's too.
        raise OSError(seccomp.ENOSYS, "needs Linux 5.8")
    libc.unshare(libc.CLONE_NEWNS)
    mounts.confine(Path(mounts.EMPTY_DIRECTORY), None, [], own_proc=True)
