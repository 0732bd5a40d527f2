"""The end of a task's leaf: its counters are read, then it is removed. Stdlib only."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, cast

from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import TaskKey, Usage, id_of
from jobcluster_worker.launcher.starters import Starters

if TYPE_CHECKING:
    from jobcluster_worker.cgroup.leaf import Leaf

_REMOVAL_SECONDS = 5.0


def count_and_remove(leaf: Leaf, key: TaskKey, starters: Starters) -> Usage | None:
    """What was used, None if it cannot be read. The leaf goes at once, or, while the kernel is still taking the last
    process apart (EBUSY), in a thread that may wait.
    """
    usage = None
    try:
        usage = cast(Usage, leaf.usage())
    except OSError as error:
        note("task_fault", "error", reason=f"usage: {error}", **id_of(key))
    try:
        leaf.remove(0.0)
    except OSError:
        with contextlib.suppress(OSError):
            starters.submit(partial(_remove_patiently, leaf, key))
    return usage


def _remove_patiently(leaf: Leaf, key: TaskKey) -> None:
    try:
        leaf.remove(_REMOVAL_SECONDS)
    except OSError as error:
        note("leaf_not_removed", "error", reason=str(error), **id_of(key))
