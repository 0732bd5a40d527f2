"""What the calling thread gives up before a task's process is started in it."""

import os
from typing import Final

from jobcluster_worker.sandbox import landlock, libc, seccomp

# Group of the cgroup.procs files a start may write, borrowed as file-system gid until exec takes it away again. No
# process has it otherwise: uids and gids of tasks begin right above. So entering a leaf needs no capability, with
# which exec would not check the task's own rights to the program.
ENTRY_GID: Final = 99_999

_LAST_CAPABILITY_FILE: Final = "/proc/sys/kernel/cap_last_cap"


def last_capability() -> int:
    with open(_LAST_CAPABILITY_FILE, encoding="utf-8") as file:
        return int(file.read())


def drop_bounding_set(last: int) -> None:
    """Nothing executed later can gain a capability, whatever its file says."""
    for capability in range(last + 1):
        libc.prctl(libc.PR_CAPBSET_DROP, capability, step=f"drop capability {capability}")
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL, step="clear ambient capabilities")


def become(uid: int, gid: int, enters_leaf: bool) -> None:
    """The calling thread becomes this user: no supplementary group, no capability. Raises OSError."""
    libc.setgroups([])
    libc.setresgid(gid)
    if enters_leaf:
        libc.setfsgid(ENTRY_GID)
    libc.setresuid(uid)
    libc.capset_none()
    # The address space is shared with the supervisor until exec: nobody of this uid may trace into it.
    libc.prctl(libc.PR_SET_DUMPABLE, 0, step="set dumpable")


def close_the_door(filtered: bool, scoped: bool, with_listener: bool) -> int | None:
    """no_new_privs, the Landlock domain, the system call filter; the filter's listener where one was asked for.

    :raises OSError: naming the step
    """
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1, step="no_new_privs")
    if scoped:
        landlock.restrict()
    if not filtered:
        return None
    if not with_listener:
        libc.install_seccomp(seccomp.program())
        return None
    return libc.install_seccomp(
        seccomp.program(clone3=seccomp.USER_NOTIFY), libc.SECCOMP_FILTER_FLAG_NEW_LISTENER
    )


def is_root() -> bool:
    return os.geteuid() == 0
