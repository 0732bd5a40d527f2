from __future__ import annotations

from jobcluster_worker.launcher.containment import InLeaf


class LeafWithoutLife:
    """A leaf whose last process has ended."""

    def signal(self, number: int) -> int:
        return 0

    def kill(self) -> None:
        return

    def populated(self) -> bool:
        return False


def test_a_leaf_is_not_empty_before_its_last_zombie_is_reaped() -> None:
    zombies = [4711]
    members = InLeaf(LeafWithoutLife(), lambda: bool(zombies))
    assert not members.empty()
    zombies.clear()
    assert members.empty()
