"""Starts the process of one task: confined, in its cgroup leaf before its first instruction, and with nothing of ours.

Two ways with one result. The fast one: a short-lived thread confines itself and calls posix_spawn; thread and rights
end together. The other, for C libraries that cannot spawn into a cgroup (glibc before 2.39): a forked child enters the
leaf, confines itself and execs.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from jobcluster_worker.sandbox import forked, threaded
from jobcluster_worker.sandbox.confine import Confinement
from jobcluster_worker.sandbox.posix_spawn import CAN_ENTER_CGROUP
from jobcluster_worker.sandbox.start import Start

# Jobs are to be killed before the worker when the machine itself is out of memory.
OOM_SCORE_ADJ: Final = 500

_fast_way_into_leaf: bool = CAN_ENTER_CGROUP


def spawn(
    argv: Sequence[bytes],
    executable: bytes,
    env: Mapping[bytes, bytes],
    fds: tuple[int, int, int],
    cwd: bytes,
    leaf_fd: int | None,
    confinement: Confinement,
) -> int:
    """Starts the process and returns its pid; it is a child of the calling process, leader of its own session.

    Blocks until exec has happened or failed, without the GIL. Callable from any thread.

    :raises OSError: exec's errno (ENOENT, EACCES, ENOEXEC...) or that of the step of confinement that failed, which
        its text names; then nothing was executed and nothing is left behind
    """
    global _fast_way_into_leaf
    start = Start(argv, executable, env, fds, cwd, leaf_fd, confinement)
    if leaf_fd is None or _fast_way_into_leaf:
        try:
            return _settle(threaded.spawn(start))
        except threaded.NoCloneInto:
            pid = _settle(forked.spawn(start))
            _fast_way_into_leaf = (
                False  # only now: the other way has shown that it was not the program's fault
            )
            return pid
    return _settle(forked.spawn(start))


def _settle(pid: int) -> int:
    score = f"/proc/{pid}/oom_score_adj"
    # It may have ended already; and no start fails for want of this.
    with contextlib.suppress(OSError), open(score, "w", encoding="utf-8") as file:
        file.write(str(OOM_SCORE_ADJ))
    return pid
