"""What is to be done for a supervisor that died with tasks: kill what it left, and name its tasks. Stdlib only.

A claim without an end is a lost task; the server ends it from its claim and its output, also after its own restart.
"""

from __future__ import annotations

import signal
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


class LostSupervisor:
    """Its processes have become the launcher's children: the launcher is the next subreaper above."""

    def __init__(self, post: Post, site: Site) -> None:
        """:raises OSError: its end log cannot be read."""
        self.post = post
        self._site = site
        ended = read_ends(end_log_path(site.bootstrap.state_directory, post.incarnation, post.name))
        done = {key_of(task) for task in ended}
        self._claims = [
            claim
            for claim in claims.held(site.bootstrap.data_directory)
            if (claim.incarnation, claim.supervisor) == (post.incarnation, post.name)
            and claim.key not in done
        ]
        self._leaves = [leaf for claim in self._claims if (leaf := self._leaf(claim)) is not None]

    @property
    def tasks(self) -> list[TaskId]:
        """The tasks that it held."""
        return [id_of(claim.key) for claim in self._claims]

    def kill(self, spare: frozenset[int]) -> None:
        """Kills all it left, but for the launcher's own children; to be repeated until ``gone``."""
        for leaf in self._leaves:
            leaf.kill()
        if self.post.uids is not None:
            for claim in self._claims:
                if claim.uid >= 0:
                    processes.signal_uid(claim.uid, self.post.uids.signaller, signal.SIGKILL)
        kill_below(spare=spare)

    def gone(self, spare: frozenset[int]) -> bool:
        """Whether nothing of it lives. A stranger among the launcher's children is of some dead supervisor."""
        if any(leaf.populated() for leaf in self._leaves):
            return False
        strangers = [pid for pid in processes.children() if pid not in spare]
        if self.post.uids is None:
            return not strangers
        first, last = self.post.uids.first, self.post.uids.signaller
        return not any(first <= (processes.uid_of(pid) or 0) <= last for pid in strangers)

    def clear(self) -> None:
        """Removes the cgroup leaves."""
        for leaf in self._leaves:
            try:
                leaf.remove()
            except OSError as error:
                note("leaf_not_removed", "error", why=str(error))

    def _leaf(self, claim: Claim) -> Leaf | None:
        tree = self._site.tree
        return tree.existing_leaf(*claim.key) if tree is not None else None
