import errno
import os
from pathlib import Path

import pytest
from jobcluster_worker.cgroup.leaf import Leaf, remove_group

ALL_ON = {
    "cpu.max": "50000 100000\n",
    "cpu.stat": "usage_usec 2000000\nnr_throttled 3\nthrottled_usec 1000000\n",
    "memory.max": "67108864\n",
    "memory.oom.group": "0\n",
    "memory.peak": "4096\n",
    "memory.events": "oom 1\noom_kill 1\n",
    "pids.max": "32\n",
    "pids.peak": "3\n",
    "io.max": "8:0 rbps=max wbps=1000 riops=max wiops=max\n",
    "cpu.pressure": "some avg10=1.00 total=1500000\nfull avg10=0.00 total=250000\n",
    "io.stat": "8:0 rbytes=10 wbytes=20\n",
    "cgroup.procs": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
}


def leaf_of(directory: Path, texts: dict[str, str]) -> Leaf:
    for name, text in texts.items():
        (directory / name).write_text(text)
    return Leaf(directory, "8:0", {})


def test_effective_is_what_the_files_say(tmp_path: Path) -> None:
    leaf = leaf_of(tmp_path, ALL_ON)
    assert leaf.effective == {
        "cpu": 0.5,
        "memory_bytes": 67108864,
        "pids": 32,
        "io": {"read_bps": None, "write_bps": 1000, "read_iops": None, "write_iops": None},
        "oom": "process",
    }
    leaf.close()


def test_a_resource_whose_controller_is_off_has_no_limit_and_no_figure(tmp_path: Path) -> None:
    leaf = leaf_of(tmp_path, {"cpu.stat": "usage_usec 1000000\n", "cgroup.events": "populated 1\n"})
    assert leaf.effective["memory_bytes"] is leaf.effective["cpu"] is leaf.effective["oom"] is None
    usage = leaf.usage()
    assert usage["cpu_seconds"] == 1
    assert {name for name, value in usage.items() if value is None} == set(usage) - {"cpu_seconds"}
    assert leaf.populated()
    leaf.close()


def test_usage_has_the_kernels_counters(tmp_path: Path) -> None:
    leaf = leaf_of(tmp_path, ALL_ON)
    assert leaf.usage() == {
        "cpu_seconds": 2,
        "cpu_throttled_seconds": 1,
        "memory_peak_bytes": 4096,
        "oom_kills": 1,
        "io_read_bytes": 10,
        "io_write_bytes": 20,
        "pids_peak": 3,
        "cpu_pressure_some_seconds": 1.5,
        "cpu_pressure_full_seconds": 0.25,
        "memory_pressure_some_seconds": None,
        "memory_pressure_full_seconds": None,
        "io_pressure_some_seconds": None,
        "io_pressure_full_seconds": None,
    }
    assert not leaf.populated()
    leaf.close()


def test_a_leaf_whose_limits_cannot_be_read_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IsADirectoryError):
        Leaf(tmp_path, "8:0", {})
    assert os.listdir("/proc/self/fd") == before


def test_a_group_that_is_gone_is_removed_already(tmp_path: Path) -> None:
    remove_group(tmp_path / "gone", 0.1)


def test_a_group_that_cannot_be_removed_says_so(tmp_path: Path) -> None:
    (tmp_path / "group" / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty") as caught:
        remove_group(tmp_path / "group", 0.1)
    assert caught.value.errno == errno.ENOTEMPTY
