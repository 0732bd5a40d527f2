import os
from pathlib import Path

import pytest
from jobcluster_worker.cgroup import place

UNIFIED = "30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """30 22 0:26 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
"""


def test_the_unified_hierarchy_is_told_from_a_hybrid_one() -> None:
    assert place.is_cgroup2(UNIFIED)
    assert not place.is_cgroup2(HYBRID)
    assert not place.is_cgroup2("")


def test_a_later_mount_on_the_same_point_covers_the_earlier() -> None:
    assert place.is_cgroup2(HYBRID + UNIFIED)
    assert not place.is_cgroup2(UNIFIED + HYBRID)


def test_the_own_group_is_the_line_of_hierarchy_0() -> None:
    assert place.own_path("9:cpu:/x\n0::/kubepods/pod1/ctr\n") == "/kubepods/pod1/ctr"
    assert place.own_path("0::/\n") == "/"


def test_a_process_outside_of_its_namespace_has_no_place() -> None:
    with pytest.raises(place.NoPlace, match="outside"):
        place.own_path("0::/../other\n")
    with pytest.raises(place.NoPlace, match="no unified"):
        place.own_path("9:cpu:/x\n")


def test_a_directory_is_delegated_when_systemd_marked_it(tmp_path: Path) -> None:
    assert not place.is_delegated(tmp_path)
    try:
        os.setxattr(tmp_path, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    assert place.is_delegated(tmp_path)
