"""What is to be done for a supervisor that died with tasks: kill what it left, and name its tasks. Stdlib only.

A claim without an end is a lost task; the server ends it from its claim and its output, also after its own restart.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from jobcluster_worker.launcher import claims, processes
from jobcluster_worker.launcher.containment import kill_below
from jobcluster_worker.launcher.ends import end_log_path, read_ends
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import TaskId, id_of, key_of

if TYPE_CHECKING:
    from jobcluster_worker.cgroup.leaf import Leaf
    from jobcluster_worker.launcher.claims import Claim
    from jobcluster_worker.launcher.start import Site
    from jobcluster_worker.launcher.supervisor import Post

_REMOVAL_SECONDS = 5.0


class LostSupervisor:
    """Its processes have become the launcher's children: the launcher is the next subreaper above."""

    def __init__(self, post: Post, site: Site) -> None:
        self.post = post
        self._site = site
        self._claims: list[Claim] | None = None
        self._leaves: list[Leaf] = []
        self._last_removal = float("inf")

    @property
    def tasks(self) -> list[TaskId]:
        """The tasks that it held."""
        return [id_of(claim.key) for claim in self._claims or ()]

    def clear(self, spare: frozenset[int], kill: bool) -> bool:
        """Looks whether nothing of it lives, and removes its leaves then; else kills, and is to be called again.

        ``spare`` are the launcher's own children, ``kill`` has it kill before it looks.

        :raises OSError: something could not be killed or found out; also then to be called again.
        """
        if kill:
            # What has become the launcher's child needs no claim to be found.
            kill_below(spare=spare)
        held = self._find()
        if kill or not self._gone(spare):
            self._kill(held, spare)
        return self._gone(spare) and self._remove_leaves()

    def _find(self) -> list[Claim]:
        if self._claims is None:
            directories, post = self._site.bootstrap, self.post
            ended = read_ends(end_log_path(directories.state_directory, post.incarnation, post.name))
            done = {key_of(task) for task in ended}
            held = [
                claim
                for claim in claims.held(directories.data_directory)
                if (claim.incarnation, claim.supervisor) == (post.incarnation, post.name)
                and claim.key not in done
            ]
            self._leaves = [leaf for claim in held if (leaf := self._leaf(claim)) is not None]
            self._claims = held
        return self._claims

    def _kill(self, held: list[Claim], spare: frozenset[int]) -> None:
        for leaf in self._leaves:
            leaf.kill()
        if self.post.uids is not None:
            for claim in held:
                if claim.uid >= 0:
                    processes.signal_uid(claim.uid, self.post.uids.signaller, signal.SIGKILL)
        kill_below(spare=spare)

    def _gone(self, spare: frozenset[int]) -> bool:
        """Whether nothing of it lives. A stranger among the launcher's children is of some dead supervisor."""
        if any(leaf.populated() for leaf in self._leaves):
            return False
        strangers = [pid for pid in processes.children() if pid not in spare]
        if self.post.uids is None:
            return not strangers
        first, last = self.post.uids.first, self.post.uids.signaller
        return not any(first <= (processes.uid_of(pid) or 0) <= last for pid in strangers)

    def _remove_leaves(self) -> bool:
        """Whether they are gone, or it is no use to wait any more: the kernel may still take a process apart."""
        self._last_removal = min(self._last_removal, time.monotonic() + _REMOVAL_SECONDS)
        left = []
        for leaf in self._leaves:
            try:
                leaf.remove(0.0)
            except OSError as error:
                left.append(leaf)
                why = str(error)
        self._leaves = left
        if left and time.monotonic() >= self._last_removal:
            note("leaf_not_removed", "error", supervisor=self.post.name, reason=why)
            return True
        return not left

    def _leaf(self, claim: Claim) -> Leaf | None:
        tree = self._site.tree
        return tree.existing_leaf(*claim.key) if tree is not None else None
